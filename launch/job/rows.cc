// Rows in and out as JSON lines.
#include "launch/job/rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

namespace kvmesh {
namespace {

// A row's fault, on its way to text.error.
struct RowError {
  std::string message;
};

template <typename... Args>
[[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) {
  throw RowError{fmt::format(format, std::forward<Args>(args)...)};
}

constexpr int max_depth = 256;  // what is passed through is written by a function that calls itself

// see(i) at the places of a JSON text that are not within its strings, until it says no; it may move i on. Whether it never did.
template <typename See>
bool outside_strings(std::string_view json, const See& see) {
  bool text = false;
  for (std::size_t i = 0; i < json.size(); ++i) {
    if (text) {
      if (json[i] == '\\') ++i;
      else text = json[i] != '"';
    } else if (json[i] == '"') {
      text = true;
    } else if (!see(i)) {
      return false;
    }
  }
  return true;
}

bool nested_deeper(std::string_view json, int depth) {
  return !outside_strings(json, [&](std::size_t i) {
    if (json[i] == '[' || json[i] == '{') return --depth >= 0;
    if (json[i] == ']' || json[i] == '}') ++depth;
    return true;
  });
}

// The first integer that has more than 64 bits in a text that is valid JSON; empty: none. The parser makes another number of it, which would come out again.
std::string_view long_integer(std::string_view json) {
  constexpr std::string_view digits = "0123456789", number = "+-.eE0123456789";
  std::string_view found;
  outside_strings(json, [&](std::size_t& i) {
    if (json[i] != '-' && digits.find(json[i]) == digits.npos) return true;
    const std::string_view all = json.substr(i, json.find_first_not_of(number, i) - i);
    std::uint64_t magnitude = 0;
    const char* const begin = all.data() + (all[0] == '-'), * const end = all.data() + all.size();
    const auto [stop, error] = std::from_chars(begin, end, magnitude);
    if (stop == end && (error != std::errc() || (all[0] == '-' && magnitude > std::uint64_t{1} << 63))) {
      found = all;
      return false;
    }
    i += all.size() - 1;
    return true;
  });
  return found;
}

// The line as an object; its id (and later every other part) is in `text` as soon as it is known.
Json parse_object(std::string_view line, RowText& text) {
  if (line.find('\0') != std::string_view::npos) reject("not a JSON object: it holds a zero byte");  // the parser takes it for the end
  if (nested_deeper(line, max_depth)) reject("not a JSON object: nested deeper than {}", max_depth);
  Json object;
  try {
    object = Json::parse(line);
  } catch (const Json::exception& e) {
    std::string what = e.what();  // "[json.exception.parse_error.101] parse error at line 1, column 5: …"
    if (const auto at = what.find("] "); at != std::string::npos) what = what.substr(at + 2);
    reject("not a JSON object: {}", what);
  }
  if (!object.is_object()) reject("not a JSON object but {}", object.type_name());
  const std::string_view too_long = long_integer(line);
  if (object.contains("id") && (too_long.empty() || !(object["id"].is_number_float() || object["id"].is_structured()))) text.id = object["id"];
  if (!too_long.empty()) reject("the integer {} has more than 64 bits", too_long.substr(0, 100));
  return object;
}

// Removes and returns a field; null if it is absent or null.
Json take(Json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end()) return nullptr;
  Json v = std::move(*it);
  object.erase(it);
  return v;
}

std::int64_t integer(const Json& v, const char* name, std::int64_t least, std::int64_t most) {
  const bool fits = v.is_number_integer() && (!v.is_number_unsigned() || v.get<std::uint64_t>() <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
  if (!fits || v.get<std::int64_t>() < least || v.get<std::int64_t>() > most) reject("\"{}\": {} is not an integer from {} to {}", name, v.dump(), least, most);
  return v.get<std::int64_t>();
}

float number(const Json& v, const char* name) {
  if (!v.is_number() || !std::isfinite(v.get<float>())) reject("\"{}\": {} is not a finite number", name, v.dump());
  return v.get<float>();
}

std::vector<std::int32_t> id_list(const Json& v, const char* name, const RowContext& context) {
  if (!v.is_array()) reject("\"{}\" is not a list of ids", name);
  const std::int32_t pad = context.pad();
  std::vector<std::int32_t> ids;
  for (const Json& e : v) {
    const std::int64_t most = std::max<std::int64_t>(context.config.vocab_size - 1, pad);
    ids.push_back(static_cast<std::int32_t>(integer(e, name, 0, most)));
  }
  return ids;
}

// The ids of "prompt" (text) or "tokens", named so or as `text_name` and `ids_name` say.
// `adds`: with what the tokenizer puts around a text.
std::vector<std::int32_t> take_ids(Json& object, const char* text_name, const char* ids_name, const RowContext& context, Json* text_out, bool adds) {
  const Json text = take(object, text_name), ids = take(object, ids_name);
  if (text.is_null() && ids.is_null()) reject("neither \"{}\" nor \"{}\"", text_name, ids_name);
  if (!text.is_null() && !ids.is_null()) reject("both \"{}\" and \"{}\"", text_name, ids_name);
  if (!ids.is_null()) return id_list(ids, ids_name, context);
  if (!text.is_string()) reject("\"{}\" is not a text", text_name);
  if (!context.tokenizer) reject("\"{}\" is text, but the checkpoint has no tokenizer.tiktoken or tokenizer.json", text_name);
  if (text_out) *text_out = text;
  return context.tokenizer->encode(text.get_ref<const std::string&>(), adds);
}

// The ids of a row's prompt, which with --chat is what the template makes of its conversation; that stays among the fields passed through.
std::vector<std::int32_t> take_prompt(Json& object, const RowContext& context, Json* text_out) {
  const auto field = [&](const char* name) { return object.contains(name) ? object[name] : Json(); };
  if (!context.chat || (field("messages").is_null() && !field("tokens").is_null())) return take_ids(object, "prompt", "tokens", context, text_out, true);
  Json messages = field("messages"), prompt = take(object, "prompt");
  if (messages.is_null() && prompt.is_null()) reject("neither \"messages\" nor \"prompt\" nor \"tokens\"");
  if (!messages.is_null() && !(prompt.is_null() && field("tokens").is_null())) reject("both \"messages\" and a prompt");
  if (messages.is_null()) {
    if (!prompt.is_string()) reject("\"prompt\" is not a text");
    if (text_out) *text_out = prompt;
    messages = Json::array({{{"role", "user"}, {"content", std::move(prompt)}}});
  }
  return context.tokenizer->encode(context.chat->render(std::move(messages), field("tools"), field("chat_template_kwargs")), false);
}

// Leading pads are padding; what is left must be a prompt that can be served.
void check_prompt(std::vector<std::int32_t>& ids, const RowContext& context) {
  const std::int32_t pad = context.pad();
  if (pad >= 0) ids.erase(ids.begin(), std::find_if(ids.begin(), ids.end(), [pad](std::int32_t id) { return id != pad; }));
  if (ids.empty()) reject("the prompt is empty");
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] == pad) reject("token {} of the prompt is the pad id {}, after a real token", i, pad);
    if (ids[i] < 0 || ids[i] >= context.config.vocab_size) reject("token {} of the prompt, {}, is outside the vocabulary of {}", i, ids[i], context.config.vocab_size);
  }
}

template <typename Body>
void parse_guarded(RowText& text, std::int64_t index, const Body& body) {
  text.index = index;
  try {
    body();
  } catch (const RowError& e) {
    text.error = e.message;
  } catch (const Error& e) {  // the chat template's
    text.error = e.what();
  } catch (const Json::exception& e) {
    text.error = e.what();
  }
}

std::string dump(const Json& v) { return v.dump(-1, ' ', false, Json::error_handler_t::replace); }

// A float's shortest text that reads back as the same float; JSON has no infinities.
std::string number_text(float v) { return std::isfinite(v) ? fmt::format("{}", v) : "null"; }

std::string head(const RowText& text) {
  return (text.id.is_null() ? "{" : "{\"id\": " + dump(text.id) + ", ") + fmt::format("\"index\": {}", text.index);
}

// The fields passed through, but for those whose names this line uses itself, and "error", which marks rows that were not served.
std::string tail(const RowText& text, std::initializer_list<std::string_view> own) {
  std::string s;
  for (const auto& [key, v] : text.passed_through.items()) {
    if (key != "index" && key != "error" && std::find(own.begin(), own.end(), key) == own.end()) s += ", " + dump(key) + ": " + dump(v);
  }
  return s + "}";
}

}  // namespace

std::int32_t RowContext::pad() const { return config.native() ? special("<|pad|>") : config.pad_id; }

std::vector<std::int32_t> RowContext::stop_ids() const {
  if (!config.native()) return config.stop_ids;
  const std::int32_t end = special("<|endoftext|>");
  return end >= 0 ? std::vector{end} : std::vector<std::int32_t>();
}

std::int32_t RowContext::special(const char* name) const {
  if (tokenizer) return std::string_view(name) == "<|pad|>" ? tokenizer->pad() : tokenizer->end_of_text();
  const auto found = config.special_tokens.find(name);
  return found == config.special_tokens.end() ? -1 : found->second;
}

InputRow parse_row(std::string_view line, std::int64_t index, const RowContext& context) {
  InputRow in;
  const RowDefaults& d = context.defaults;
  parse_guarded(in.text, index, [&] {
    Json object = parse_object(line, in.text);
    take(object, "id");
    std::vector<std::int32_t> prompt = take_prompt(object, context, &in.text.prompt);
    Row& row = in.row;
    row.index = index;
    row.max_new_tokens = d.max_new_tokens, row.temperature = d.temperature, row.top_k = d.top_k, row.top_p = d.top_p, row.min_p = d.min_p;
    row.stop = d.stop;
    if (const Json v = take(object, "max_new_tokens"); !v.is_null()) row.max_new_tokens = integer(v, "max_new_tokens", 1, std::int64_t{1} << 40);
    if (const Json v = take(object, "temperature"); !v.is_null()) row.temperature = number(v, "temperature");
    if (const Json v = take(object, "top_k"); !v.is_null()) row.top_k = static_cast<std::int32_t>(integer(v, "top_k", 0, std::numeric_limits<std::int32_t>::max()));
    if (const Json v = take(object, "top_p"); !v.is_null()) row.top_p = number(v, "top_p");
    if (!(row.top_p > 0 && row.top_p <= 1)) reject("\"top_p\": {} is not above 0 and at most 1", row.top_p);
    if (const Json v = take(object, "min_p"); !v.is_null()) row.min_p = number(v, "min_p");
    if (!(row.min_p >= 0 && row.min_p <= 1)) reject("\"min_p\": {} is not from 0 to 1", row.min_p);
    if (const Json v = take(object, "seed"); !v.is_null()) row.seed = static_cast<std::uint32_t>(integer(v, "seed", 0, std::numeric_limits<std::uint32_t>::max()));
    if (Json v = take(object, "stop"); !v.is_null()) {
      if (v.is_string()) v = Json::array({v});
      if (!v.is_array()) reject("\"stop\" is neither a text nor a list of texts");
      row.stop.clear();
      for (const Json& s : v) {
        if (!s.is_string() || s.get_ref<const std::string&>().empty()) reject("\"stop\": {} is not a text of one character or more", s.dump());
        row.stop.push_back(s);
      }
    }
    if (!row.stop.empty() && !context.tokenizer) reject("\"stop\" is text, but the checkpoint has no tokenizer.tiktoken or tokenizer.json");
    row.stop_tokens = d.stop_tokens;
    if (!d.ignore_eos) {
      for (const std::int32_t id : context.stop_ids()) row.stop_tokens.push_back(id);
    }
    in.text.passed_through = std::move(object);
    check_prompt(prompt, context);
    if (std::ssize(prompt) >= context.config.seqlen) reject("the prompt's {} tokens leave no room for a new one in a context of {}", prompt.size(), context.config.seqlen);
    row.prompt = std::make_shared<const std::vector<std::int32_t>>(std::move(prompt));
  });
  return in;
}

ScoreInputRow parse_score_row(std::string_view line, std::int64_t index, const RowContext& context) {
  ScoreInputRow in;
  parse_guarded(in.text, index, [&] {
    Json object = parse_object(line, in.text);
    take(object, "id");
    in.prompt = take_prompt(object, context, nullptr);
    in.completion = take_ids(object, "completion", "completion_tokens", context, nullptr, false);
    in.text.passed_through = std::move(object);
    check_prompt(in.prompt, context);
    if (in.completion.empty()) reject("the completion is empty");
    for (const std::int32_t id : in.completion) {
      if (id >= context.config.vocab_size) reject("id {} of the completion is outside the vocabulary of {}", id, context.config.vocab_size);
    }
    if (const std::size_t n = in.prompt.size() + in.completion.size(); n > static_cast<std::size_t>(context.config.seqlen)) {
      reject("prompt and completion have {} tokens, more than the context of {}", n, context.config.seqlen);
    }
  });
  return in;
}

std::string error_line(const RowText& text) { return head(text) + ", \"error\": " + dump(text.error) + "}"; }

std::string completion_line(const RowText& text, const Completion& c, bool with_text, const GenerateOptions& options, std::int64_t sample) {
  static constexpr const char* reasons[] = {"none", "stop", "length", "context"};
  std::string s = head(text);
  if (!text.prompt.is_null()) s += ", \"prompt\": " + dump(text.prompt);
  if (with_text) s += ", \"completion\": " + dump(to_valid_utf8(c.bytes));
  s += fmt::format(", \"tokens\": [{}], \"finish_reason\": \"{}\"", fmt::join(c.tokens, ", "), reasons[static_cast<int>(c.finish)]);
  if (options.logprobs >= 0) {
    s += ", \"logprobs\": [";
    for (std::size_t i = 0; i < c.logprobs.size(); ++i) s += (i ? ", " : "") + number_text(c.logprobs[i]);
    s += "], \"top_logprobs\": [";
    const auto best = static_cast<std::size_t>(options.logprobs);
    for (std::size_t i = 0; i < c.tokens.size(); ++i) {
      s += i ? ", [" : "[";
      for (std::size_t j = 0; j < best; ++j) s += fmt::format("{}[{}, {}]", j ? ", " : "", c.top_ids[i * best + j], number_text(c.top_logprobs[i * best + j]));
      s += "]";
    }
    s += "]";
  }
  if (options.samples > 1) s += fmt::format(", \"sample\": {}", sample);
  const auto if_written = [](bool written, const char* name) { return written ? std::string_view(name) : std::string_view("tokens"); };
  return s + tail(text, {"tokens", "finish_reason", if_written(with_text, "completion"), if_written(options.logprobs >= 0, "logprobs"),
                         if_written(options.logprobs >= 0, "top_logprobs"), if_written(options.samples > 1, "sample")});
}

std::string score_line(const RowText& text, double log_likelihood, std::int64_t tokens, bool greedy) {
  return head(text) + fmt::format(", \"log_likelihood\": {}, \"tokens\": {}, \"greedy\": {}", log_likelihood, tokens, greedy) +
         tail(text, {"log_likelihood", "tokens", "greedy"});
}

}  // namespace kvmesh
