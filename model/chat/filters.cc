// Jinja's filters of texts, numbers and any value; tojson as transformers has it.
#include "model/chat/builtins.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <cstdlib>

namespace kvmesh::jinja {
namespace {

bool flag(Heap& heap, Arguments& a, const char* name) { return heap.truth(a.take(name).value_or(Value(false))); }

Value tojson(Heap& heap, const Value& in, Arguments& a) {
  Heap::JsonStyle style;
  style.ascii = flag(heap, a, "ensure_ascii");
  if (const std::optional<Value> indent = a.take("indent"); indent && !indent->is(Kind::none)) {
    style.indent = indent->is(Kind::text) ? plain(*indent) : std::string(static_cast<std::size_t>(std::clamp<std::int64_t>(whole(*indent, "indent"), 0, 1000)), ' ');
    style.comma = ",";
  }
  if (const std::optional<Value> separators = a.take("separators"); separators && !separators->is(Kind::none)) {
    const std::vector<Value> two = heap.elements(*separators);
    if (two.size() != 2) reject("tojson: separators must be two");
    style.comma = plain(two[0]);
    style.colon = plain(two[1]);
  }
  style.sorted = flag(heap, a, "sort_keys");
  a.done();
  std::string out;
  heap.to_json(out, in, style);
  return heap.text(std::move(out));
}

Value indented(Heap& heap, const Value& in, Arguments& a) {
  const Value width = a.take("width").value_or(Value(std::int64_t{4}));
  const bool first = flag(heap, a, "first"), blank = flag(heap, a, "blank");
  a.done();
  const std::string indent = width.is(Kind::text) ? plain(width) : std::string(static_cast<std::size_t>(std::clamp<std::int64_t>(whole(width, "indent's width"), 0, 1000)), ' ');
  const std::string text = plain(in) + "\n";
  std::string out = first ? indent : "";
  bool begun = false;
  for (const std::string_view line : split_lines(text)) {
    if (begun) out += '\n';
    if (begun && (blank || !line.empty())) out += indent;
    out += line;
    begun = true;
    heap.spend(1 + indent.size() / 64);
  }
  return heap.text(std::move(out));
}

// Python's float() of a text.
std::optional<double> parsed_real(std::string_view text) {
  std::string s(strip(text, nullptr, true, true));
  for (std::size_t i = s.find('_'); i != s.npos; i = s.find('_', i)) {
    if (i == 0 || i + 1 == s.size() || !std::isdigit(static_cast<unsigned char>(s[i - 1])) || !std::isdigit(static_cast<unsigned char>(s[i + 1]))) return std::nullopt;
    s.erase(i, 1);
  }
  std::string word = s.substr(s.starts_with('-') || s.starts_with('+'));
  for (char& c : word) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (word != "inf" && word != "infinity" && word != "nan" && (word.empty() || s.find_first_not_of("0123456789.eE+-") != s.npos)) return std::nullopt;
  char* end = nullptr;
  const double d = std::strtod(s.c_str(), &end);
  return *end == '\0' ? std::optional(d) : std::nullopt;
}

Value to_integer(Value in, Arguments& a) {
  const Value otherwise = a.take("default").value_or(Value(std::int64_t{0}));
  if (whole(a.take("base").value_or(Value(std::int64_t{10})), "base") != 10) reject("int: only base 10 is supported");
  a.done();
  if (in.is(Kind::undefined)) reject("int of an undefined value");
  if (in.is_whole()) return Value(in.whole());
  if (in.is(Kind::text)) {
    const std::string& text = plain(in);
    if (std::any_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; })) reject("int of text that is not ASCII is not supported");
    const std::optional<double> d = parsed_real(text);
    if (!d) return otherwise;
    if (text.find_first_not_of("0123456789+-_ \t\n\r\v\f") == text.npos) {  // exactly, where it is no fraction
      std::string digits(strip(text, nullptr, true, true));
      std::erase(digits, '_');
      errno = 0;
      const long long i = std::strtoll(digits.c_str(), nullptr, 10);
      if (errno != 0) reject("the number {} is too large", digits);
      return Value(std::int64_t{i});
    }
    in = Value(*d);
  }
  if (!in.is(Kind::real) || !std::isfinite(in.real)) return otherwise;
  if (std::abs(in.real) >= 0x1p63) reject("a number that is too large");
  return Value(static_cast<std::int64_t>(in.real));
}

Value to_real(const Value& in, Arguments& a) {
  const Value otherwise = a.take("default").value_or(Value(0.0));
  a.done();
  if (in.is(Kind::undefined)) reject("float of an undefined value");
  if (in.is_number()) return Value(in.number());
  const std::optional<double> d = in.is(Kind::text) ? parsed_real(plain(in)) : std::nullopt;
  return d ? Value(*d) : otherwise;
}

Value rounded(Heap& heap, const Value& in, Arguments& a) {
  const std::int64_t digits = whole(a.take("precision").value_or(Value(std::int64_t{0})), "precision");
  const std::string method = plain(a.take("method").value_or(heap.text(std::string_view("common"))));
  a.done();
  if (!in.is_number()) reject("round of {}", type_name(in));
  if (method != "common" && method != "ceil" && method != "floor") reject("round: method must be common, ceil or floor");
  if (digits < 0 || digits > 15) reject("round: a precision of {} is not supported", digits);
  if (method != "common") {
    const double scale = std::pow(10.0, static_cast<double>(digits)), scaled = in.number() * scale;
    if (!(std::abs(scaled) < 0x1p53)) reject("round: the number is too large");
    return Value((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  }
  if (in.is_whole()) return Value(in.whole());
  if (!std::isfinite(in.real)) return in;
  return Value(std::strtod(fmt::format("{:.{}f}", in.real, digits).c_str(), nullptr));  // rounds the exact binary value, as Python does
}

Value escaped(Heap& heap, const Value& in) {
  if (in.is(Kind::text) && in.text->safe) return in;
  std::string out;
  for (const char c : heap.str(in)) {
    if (c == '&') out += "&amp;";
    else if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '"') out += "&#34;";
    else if (c == '\'') out += "&#39;";
    else out += c;
  }
  return heap.text(std::move(out), true);
}

// A filter of text, which marks its result as its input is marked, as Markup's own methods do.
template <typename Change>
Value changed(Heap& heap, const Value& in, const Change& change) {
  const std::string text = heap.str(in);
  heap.spend(text.size() / 32);
  return heap.text(std::string(change(text)), in.is(Kind::text) && in.text->safe);
}

}  // namespace

Value apply_filter(Heap& heap, std::string_view name, const Value& in, Arguments a) {
  if (in.is(Kind::text)) heap.spend(in.text->bytes.size() / 32);
  if (const std::optional<Value> v = apply_sequence_filter(heap, name, in, a)) return *v;
  if (name == "trim") {
    const std::optional<Value> given = a.take("chars");
    a.done();
    const std::string_view chars = given && !given->is(Kind::none) ? plain(*given) : std::string_view();
    return changed(heap, in, [&](std::string_view text) { return strip(text, given && !given->is(Kind::none) ? &chars : nullptr, true, true); });
  }
  if (name == "default" || name == "d") {
    const Value otherwise = a.take("default_value").value_or(heap.text(std::string()));
    const bool falsy = flag(heap, a, "boolean") && !heap.truth(in);
    a.done();
    return in.is(Kind::undefined) || falsy ? otherwise : in;
  }
  if (name == "replace") {
    const std::string old = heap.str(a.need("old")), now = heap.str(a.need("new"));
    const std::optional<Value> most = a.take("count");
    a.done();
    return heap.replaced(heap.str(in), old, now, most && !most->is(Kind::none) ? whole(*most, "count") : -1);
  }
  if (name == "tojson") return tojson(heap, in, a);
  if (name == "indent") return indented(heap, in, a);
  if (name == "int") return to_integer(in, a);
  if (name == "float") return to_real(in, a);
  if (name == "round") return rounded(heap, in, a);
  a.done();  // the others take none
  if (name == "upper") return changed(heap, in, upper);
  if (name == "lower") return changed(heap, in, lower);
  if (name == "capitalize") return changed(heap, in, capitalize);
  if (name == "title") return changed(heap, in, title_filter);
  if (name == "string") return in.is(Kind::text) ? in : heap.text(heap.str(in));
  if (name == "safe") return heap.text(heap.str(in), true);
  if (name == "escape" || name == "e") return escaped(heap, in);
  if (name == "abs") return in.is_number() && !(in.is_number() && in.number() < 0) ? signed_value(in, false) : signed_value(in, true);
  reject("the filter '{}' is not supported", name);
}

}  // namespace kvmesh::jinja
