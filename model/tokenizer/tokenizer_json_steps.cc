// Reads the steps of a tokenizer.json. Which object is which says its "type"; a Sequence holds others.
#include "model/tokenizer/tokenizer_json_steps.h"

#include "model/json_file.h"
#include "model/utf8.h"

#include <fmt/format.h>

#include <algorithm>

namespace kvmesh {
namespace {

constexpr std::size_t max_steps = 16, max_around = 16, max_growth = 64;

/// The steps of a value that is one step, a Sequence of steps under the name `list`, or null.
std::vector<JsonValue> steps_of(const JsonValue& value, const char* list) {
  if (value.is_null()) return {};
  if (value["type"].string() != "Sequence") return {value};
  value.only({"type", list});
  std::vector<JsonValue> steps;
  for (std::size_t i = 0; i < value[list].list_size(); ++i) {
    for (const JsonValue& step : steps_of(value[list][i], list)) steps.push_back(step);
    if (steps.size() > max_steps) value.refuse(fmt::format("has over {} steps", max_steps));
  }
  return steps;
}

/// `growth`: how many times longer the steps so far make a text.
void check_growth(const JsonValue& step, const std::string& from, const std::string& to, std::size_t& growth) {
  growth *= std::max<std::size_t>((to.size() + from.size() - 1) / from.size(), 1);
  if (growth > max_growth) step.refuse(fmt::format("may make a text over {} times longer", max_growth));
}

[[noreturn]] void refuse_type(const JsonValue& step) { step["type"].refuse(fmt::format("{} is not supported", shown(step["type"].string()))); }

bool flag(const JsonValue& value, bool otherwise) { return value.is_null() ? otherwise : value.boolean(); }

const std::string& one_character(const JsonValue& value) {
  const std::string& text = value.string();
  if (text.empty() || character_at(text, 0).length != text.size()) value.refuse("is not one character");
  return text;
}

/// The {"String": …} of a pattern.
JsonValue plain_pattern(const JsonValue& pattern) {
  pattern.only({"String"});
  return pattern["String"];
}

PreTokenizer::Step read_split(const JsonValue& step) {
  step.only({"type", "pattern", "behavior", "invert"});
  step["pattern"].only({"Regex"});
  const JsonValue regex = step["pattern"]["Regex"];
  const std::optional<SplitPattern> pattern = SplitPattern::of(regex.string());
  if (!pattern) regex.refuse("is not a pattern that kvmesh knows");
  // The pattern matches everything: what it matches is what is kept.
  const std::string& behavior = step["behavior"].string();
  const bool invert = step["invert"].boolean();
  if (behavior != "Isolated" && !(behavior == "Removed" && invert)) step["behavior"].refuse("is not Isolated, nor Removed with \"invert\"");
  return {.kind = PreTokenizer::Step::split, .pattern = pattern};
}

PreTokenizer::Step read_metaspace(const JsonValue& step) {
  step.only({"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  const JsonValue scheme = step["prepend_scheme"], add_prefix_space = step["add_prefix_space"];
  const std::string name = scheme.is_null() ? "always" : scheme.string();
  if (name != "always" && name != "first" && name != "never") scheme.refuse("is not always, first or never");
  const bool prefix = flag(add_prefix_space, true);
  if (!prefix && !scheme.is_null() && name != "never") add_prefix_space.refuse("contradicts prepend_scheme");
  return {.kind = PreTokenizer::Step::metaspace,
          .replacement = one_character(step["replacement"]),
          .prepend = prefix && name != "never",
          .prepend_first_only = name == "first",
          .cut = flag(step["split"], true)};
}

/// The steps from `step` on, which ends the list, as ByteLevel has them.
void read_byte_level(const JsonValue& step, std::vector<PreTokenizer::Step>& steps) {
  step.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  if (step["add_prefix_space"].boolean()) steps.push_back({.kind = PreTokenizer::Step::prefix_space});
  if (flag(step["use_regex"], true)) steps.push_back({.kind = PreTokenizer::Step::split, .pattern = SplitPattern()});
}

/// What a template puts before and behind the text.
void read_template(const JsonValue& step, TokenizerParts& parts) {
  step.only({"type", "single", "pair", "special_tokens"});
  const JsonValue single = step["single"];
  std::vector<std::int32_t> ids[2];
  int texts = 0;
  for (std::size_t i = 0; i < single.list_size(); ++i) {
    const JsonValue piece = single[i];
    piece.only({"Sequence", "SpecialToken"});
    if (piece["SpecialToken"].is_null()) {
      piece["Sequence"].only({"id", "type_id"});
      if (piece["Sequence"]["id"].string() != "A" || ++texts > 1) piece["Sequence"].refuse("is not the one sequence A");
      continue;
    }
    piece.only({"SpecialToken"});
    piece["SpecialToken"].only({"id", "type_id"});
    const JsonValue token = step["special_tokens"][piece["SpecialToken"]["id"].string()];
    token.only({"id", "ids", "tokens"});
    for (std::size_t j = 0; j < token["ids"].list_size(); ++j) {
      const std::int32_t id = token["ids"][j].integer(0, INT32_MAX);
      if (static_cast<std::size_t>(id) >= parts.texts.size() || parts.texts[static_cast<std::size_t>(id)].empty()) token["ids"][j].refuse("is no token's id");
      ids[texts].push_back(id);
      if (ids[texts].size() > max_around) single.refuse(fmt::format("has over {} tokens on one side", max_around));
    }
  }
  if (texts == 0) single.refuse("has no sequence A");
  parts.before.insert(parts.before.begin(), ids[0].begin(), ids[0].end());
  parts.behind.insert(parts.behind.end(), ids[1].begin(), ids[1].end());
}

}  // namespace

void read_normalizer(const JsonValue& normalizer, TokenizerParts& parts) {
  std::size_t growth = 1;
  for (const JsonValue& step : steps_of(normalizer, "normalizers")) {
    const std::string& type = step["type"].string();
    if (type == "NFC") {
      step.only({"type"});
      parts.normalizer.steps.push_back({Normalizer::Step::nfc, "", ""});
    } else if (type == "Prepend") {
      step.only({"type", "prepend"});
      check_growth(step, "1", step["prepend"].string(), growth);
      parts.normalizer.steps.push_back({Normalizer::Step::prepend, "", step["prepend"].string()});
    } else if (type == "Replace") {
      step.only({"type", "pattern", "content"});
      if (step["content"].string().empty()) step["content"].refuse("is empty");
      parts.normalizer.steps.push_back({Normalizer::Step::replace, one_character(plain_pattern(step["pattern"])), step["content"].string()});
      check_growth(step, parts.normalizer.steps.back().from, parts.normalizer.steps.back().to, growth);
    } else {
      refuse_type(step);
    }
  }
}

void read_pre_tokenizer(const JsonValue& pre_tokenizer, TokenizerParts& parts) {
  parts.rules.characters = true;
  std::vector<PreTokenizer::Step>& steps = parts.pre_tokenizer.steps;
  for (const JsonValue& step : steps_of(pre_tokenizer, "pretokenizers")) {
    const std::string& type = step["type"].string();
    if (!parts.rules.characters) step.refuse("stands behind ByteLevel, where text is no text any more");
    if (type == "ByteLevel") {
      read_byte_level(step, steps);
      parts.rules.characters = false;
    } else if (type == "Split") {
      steps.push_back(read_split(step));
    } else if (type == "Digits") {
      step.only({"type", "individual_digits"});
      steps.push_back({.kind = PreTokenizer::Step::digits, .one_by_one = step["individual_digits"].boolean()});
    } else if (type == "Metaspace") {
      steps.push_back(read_metaspace(step));
      // The package asks where a piece stood in the text as it was given; kvmesh knows only whether it is the first.
      if (steps.back().prepend_first_only && (steps.size() > 1 || !parts.normalizer.steps.empty()))
        step.refuse("with prepend_scheme first stands behind another step or a normalizer");
    } else {
      refuse_type(step);
    }
  }
}

void read_post_processor(const JsonValue& post_processor, TokenizerParts& parts) {
  for (const JsonValue& step : steps_of(post_processor, "processors")) {
    const std::string& type = step["type"].string();
    if (type == "TemplateProcessing") read_template(step, parts);
    else if (type != "ByteLevel") refuse_type(step);  // ByteLevel's changes offsets alone
  }
}

void read_decoder(const JsonValue& decoder, TokenizerParts& parts) {
  if (decoder.is_null()) decoder.refuse("is missing: without it tokens are no text");
  const std::vector<JsonValue> steps = steps_of(decoder, "decoders");
  if (!parts.rules.characters) {
    if (steps.size() != 1 || steps[0]["type"].string() != "ByteLevel") decoder.refuse("is not ByteLevel, which pre_tokenizer is");
    return;
  }
  parts.decoder.emplace();
  using Step = TokenDecoder::Step;
  std::size_t growth = 1;
  for (const JsonValue& step : steps) {
    const std::string& type = step["type"].string();
    if (type == "Replace") {
      step.only({"type", "pattern", "content"});
      const JsonValue from = plain_pattern(step["pattern"]);
      if (from.string().empty()) from.refuse("is empty");
      check_growth(step, from.string(), step["content"].string(), growth);
      parts.decoder->steps.push_back({.kind = Step::replace, .from = from.string(), .to = step["content"].string()});
    } else if (type == "ByteFallback" || type == "Fuse") {
      step.only({"type"});
      parts.decoder->steps.push_back({.kind = type == "Fuse" ? Step::fuse : Step::byte_fallback});
    } else if (type == "Strip") {
      step.only({"type", "content", "start", "stop"});
      step["stop"].integer(0, 0);
      parts.decoder->steps.push_back({.kind = Step::strip, .from = one_character(step["content"]), .count = static_cast<std::size_t>(step["start"].integer(0, 1000))});
    } else if (type == "Metaspace") {
      const PreTokenizer::Step space = read_metaspace(step);
      parts.decoder->steps.push_back({.kind = Step::metaspace, .from = space.replacement, .drop_first = space.prepend});
    } else {
      refuse_type(step);
    }
  }
}

}  // namespace kvmesh
