// Reads a tokenizer.json: the vocabulary, its merges, the added tokens.
#include "model/tokenizer/tokenizer_json.h"

#include <array>
#include <unordered_map>
#include <unordered_set>

#include "model/json_file.h"
#include "model/json_value.h"
#include "model/tokenizer/tiktoken_file.h"
#include "model/tokenizer/tokenizer_json_steps.h"
#include "model/utf8.h"
#include "runtime/check.h"

namespace kvmesh {
namespace {

constexpr std::size_t max_bytes = std::size_t{64} << 20;  // twice the largest in use
constexpr std::size_t max_added = 1 << 14;                  // some have thousands
constexpr std::size_t max_content = 1 << 10, max_contents = 1 << 20;  // bytes of one, and of all: a node of a trie each

using Ids = std::unordered_map<std::string_view, std::int32_t>;

/// The character that byte-level vocabularies spell each byte with: itself where it is printable in Latin-1, else U+0100 and on.
std::array<char32_t, 256> byte_characters() {
  std::array<char32_t, 256> characters{};
  char32_t next = 0x100;
  for (char32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
    characters[b] = printable ? b : next++;
  }
  return characters;
}

/// The bytes that a byte-level vocabulary spells as `text`; `text` itself if it has a character that spells none.
std::pair<std::string, bool> spelled_bytes(std::string_view text) {
  static const std::vector<std::int32_t> byte_of = [] {
    std::vector<std::int32_t> table(0x200, -1);
    const auto characters = byte_characters();
    for (std::size_t b = 0; b < 256; ++b) table[characters[b]] = static_cast<std::int32_t>(b);
    return table;
  }();
  std::string bytes;
  for (std::size_t at = 0; at < text.size();) {
    const Character next = character_at(text, at);
    if (next.code >= byte_of.size() || byte_of[next.code] < 0) return {std::string(text), false};
    bytes += static_cast<char>(byte_of[next.code]);
    at += next.length;
  }
  return {bytes, true};
}

/// Fills parts.vocabulary and parts.texts. The ids' keys lie in the JSON.
Ids read_vocabulary(const JsonValue& vocab, TokenizerParts& parts) {
  if (!vocab.json().is_object()) vocab.refuse("is not an object");
  Ids ids;
  ids.reserve(vocab.json().size());
  std::vector<std::string_view> spelling;
  for (const auto& [text, value] : vocab.json().items()) {
    const std::int32_t id = value.is_number_unsigned() && value.get<std::uint64_t>() < rank_limit ? value.get<std::int32_t>() : vocab[text].integer(0, rank_limit - 1);
    const auto place = static_cast<std::size_t>(id);
    if (text.empty()) vocab.refuse("has an empty token");
    if (place >= spelling.size()) spelling.resize(place + 1);
    if (!spelling[place].empty()) vocab.refuse(fmt::format("has the id {} for {} and for {}", id, shown(spelling[place]), shown(text)));
    spelling[place] = ids.emplace(text, id).first->first;
  }
  if (ids.empty()) vocab.refuse("is empty");
  parts.texts.resize(spelling.size());
  parts.vocabulary.resize(spelling.size());
  for (std::size_t id = 0; id < spelling.size(); ++id) {
    auto [text, reachable] = parts.rules.characters ? std::pair(std::string(spelling[id]), true) : spelled_bytes(spelling[id]);
    if (reachable) parts.vocabulary[id] = text;  // else no piece can be this token
    parts.texts[id] = std::move(text);
  }
  return ids;
}

/// The two tokens of a merge: "a b" or ["a", "b"].
std::array<std::string_view, 2> read_pair(const JsonValue& merge) {
  if (merge.json().is_array()) {
    if (merge.list_size() != 2) merge.refuse("is not a pair");
    const auto part = [&](std::size_t i) -> std::string_view {
      const nlohmann::json& text = merge.json()[i];
      return text.is_string() ? text.get_ref<const std::string&>() : merge[i].string();
    };
    return {part(0), part(1)};
  }
  const std::string_view text = merge.string();
  const std::size_t space = text.find(' ');
  if (space == text.npos || text.find(' ', space + 1) != text.npos) merge.refuse("is not two tokens with a space between them");
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const JsonValue& list, const Ids& ids, TokenizerParts& parts) {
  std::unordered_set<std::uint64_t> seen;
  std::string both;
  parts.merges.emplace();
  seen.reserve(list.list_size());
  for (std::size_t i = 0; i < list.list_size(); ++i) {
    const JsonValue merge = list[i];
    const auto id_of = [&](std::string_view token) {
      const auto found = ids.find(token);
      if (found == ids.end()) merge.refuse(fmt::format("needs the token {}, which model.vocab has not", shown(token)));
      return found->second;
    };
    const auto [left, right] = read_pair(merge);
    both.assign(left).append(right);
    parts.merges->push_back({id_of(left), id_of(right), id_of(both)});
    const auto key = static_cast<std::uint64_t>(parts.merges->back().left) << 32 | static_cast<std::uint32_t>(parts.merges->back().right);
    if (!seen.insert(key).second) merge.refuse("is there already");
  }
}

/// Whether every text can be encoded: a token for each byte, or, if pieces are characters, the tokens <0x00> to <0xFF>.
bool is_complete(const Ids& ids, bool characters) {
  const auto spelling = byte_characters();
  for (std::size_t b = 0; b < 256; ++b) {
    const std::string byte = spelling[b] < 0x80 ? std::string(1, static_cast<char>(spelling[b]))
                                                : std::string{static_cast<char>(0xc0 | spelling[b] >> 6), static_cast<char>(0x80 | (spelling[b] & 0x3f))};
    if (!ids.contains(characters ? fmt::format("<0x{:02X}>", b) : byte)) return false;
  }
  return true;
}

/// The vocabulary's ids by the tokens' spelling, which lies in the JSON.
Ids read_model(const JsonValue& model, TokenizerParts& parts) {
  model.only({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (const JsonValue type = model["type"]; !type.is_null() && type.string() != "BPE") type.refuse(fmt::format("{} is not supported", shown(type.string())));
  const JsonValue dropout = model["dropout"];
  if (!dropout.is_null() && dropout.json() != 0) dropout.refuse("is not 0: encoding would be random");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (const JsonValue value = model[affix]; !value.is_null() && !value.string().empty()) value.refuse("is not supported");
  }
  const auto flag = [&](const char* name) { return !model[name].is_null() && model[name].boolean(); };
  Ids ids = read_vocabulary(model["vocab"], parts);
  read_merges(model["merges"], ids, parts);
  parts.rules.tokens_stay_whole = flag("ignore_merges");
  parts.rules.fuse_unknown = flag("fuse_unk");
  parts.rules.byte_fallback = flag("byte_fallback");

  const bool complete = is_complete(ids, parts.rules.characters) && (parts.rules.byte_fallback || !parts.rules.characters);
  if (!parts.rules.characters && parts.rules.byte_fallback) {
    if (!complete) model["byte_fallback"].refuse("is not supported where bytes are tokens and some are missing");
    parts.rules.byte_fallback = false;
  }
  if (const JsonValue unknown = model["unk_token"]; !unknown.is_null()) {
    const auto found = ids.find(unknown.string());
    if (found != ids.end()) parts.rules.unknown = found->second;
    else if (!complete) unknown.refuse("is not in model.vocab");
  }
  return ids;
}

/// `contents`: those of the tokens before.
void read_added_token(const JsonValue& value, const Ids& ids, std::int32_t& next_id, std::unordered_set<std::string>& contents, TokenizerParts& parts) {
  value.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
  value["special"].boolean();  // matters only to decoders that leave special tokens out
  AddedToken token{value["content"].string(), value["id"].integer(0, rank_limit - 1), value["single_word"].boolean(), value["lstrip"].boolean(),
                   value["rstrip"].boolean(), value["normalized"].boolean()};
  if (token.text.empty()) value["content"].refuse("is empty");
  if (token.text.size() > max_content) value["content"].refuse(fmt::format("has over {} bytes", max_content));
  if (!contents.insert(token.text).second) value["content"].refuse("is there already");
  // The package gives the ids itself; a file that it did not write may say others.
  const auto found = ids.find(token.text);
  const std::int32_t expected = found != ids.end() ? found->second : next_id++;
  if (token.id != expected)
    value["id"].refuse(fmt::format("is {}, but {} has the id {}: {}", token.id, shown(token.text), expected, found != ids.end() ? "it is in model.vocab" : "the next one behind model.vocab"));
  const auto place = static_cast<std::size_t>(token.id);
  if (place >= parts.texts.size()) parts.texts.resize(place + 1);
  if (found == ids.end() && !parts.texts[place].empty()) value["id"].refuse("is that of another token");
  if (token.normalized) {
    token.text = parts.normalizer(token.text);
    for (const AddedToken& other : parts.added) {
      if (other.normalized && other.text == token.text) value["content"].refuse(fmt::format("is the same as that of the id {}, when both are normalized", other.id));
    }
  }
  parts.texts[place] = parts.rules.characters ? token.text : spelled_bytes(token.text).first;
  parts.added.push_back(std::move(token));
}

}  // namespace

TokenizerParts read_tokenizer_json(const std::filesystem::path& file) {
  const nlohmann::json json = parse_json_object(read_file(file, max_bytes), file);
  const JsonValue all(json, file);
  all.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model"});
  if (const JsonValue version = all["version"]; !version.is_null() && version.string() != "1.0") version.refuse("is not 1.0");

  TokenizerParts parts;
  read_normalizer(all["normalizer"], parts);
  read_pre_tokenizer(all["pre_tokenizer"], parts);
  read_decoder(all["decoder"], parts);
  const Ids ids = read_model(all["model"], parts);
  if (const JsonValue added = all["added_tokens"]; !added.is_null()) {
    auto next_id = static_cast<std::int32_t>(ids.size());
    check(added.list_size() <= max_added, "{}: over {} added tokens", file.string(), max_added);
    std::unordered_set<std::string> contents;
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < added.list_size(); ++i) {
      read_added_token(added[i], ids, next_id, contents, parts);
      bytes += parts.added.back().text.size();
      check(bytes <= max_contents, "{}: over {} bytes of added tokens", file.string(), max_contents);
    }
  }
  read_post_processor(all["post_processor"], parts);
  return parts;
}

}  // namespace kvmesh
