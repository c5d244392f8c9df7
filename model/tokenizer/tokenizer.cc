// The tokenizer: added tokens are cut out of the text, the rest is normalized and cut into pieces, each piece is encoded.
#include "model/tokenizer/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <fstream>
#include <mutex>
#include <thread>
#include <utility>

#include "model/tokenizer/tiktoken_file.h"
#include "model/tokenizer/tokenizer_json.h"
#include "model/utf8.h"
#include "runtime/check.h"

namespace kvmesh {
namespace {

constexpr std::string_view end_of_text_name = "<|endoftext|>", pad_name = "<|pad|>";

using SpecialTokens = std::map<std::string, std::int32_t>;

bool is_json(const std::filesystem::path& file) {
  if (file.extension() == ".json") return true;
  char first = 0;
  if (std::error_code none; std::filesystem::is_regular_file(file, none)) std::ifstream(file) >> first;
  return first == '{';
}

TokenizerParts read_ranks(const std::filesystem::path& file) {
  const TiktokenFile ranks = read_tiktoken_file(file);
  TokenizerParts parts;
  parts.pre_tokenizer.steps = {{.kind = PreTokenizer::Step::split, .pattern = SplitPattern()}};
  parts.vocabulary.assign(ranks.tokens.begin(), ranks.tokens.end());
  parts.texts = parts.vocabulary;
  return parts;
}

void add_special(const std::filesystem::path& file, const std::string& text, std::int32_t id, TokenizerParts& parts) {
  check(!text.empty() && valid_utf8_prefix(text) == text.size(), "special token \"{}\": a special token is a text of at least one character",
        to_valid_utf8(text));
  check(id >= 0 && id < rank_limit, "special token \"{}\": its id {} is not within 0 to {}", text, id, rank_limit - 1);
  for (const AddedToken& token : parts.added) {
    check(token.text != text || token.id == id, "special token \"{}\": its id is {} in {}, not {}", text, token.id, file.string(), id);
    if (token.text == text) return;
  }
  if (static_cast<std::size_t>(id) >= parts.texts.size()) parts.texts.resize(static_cast<std::size_t>(id) + 1);
  std::string& place = parts.texts[static_cast<std::size_t>(id)];
  check(place.empty(), "special token \"{}\": its id {} is that of another token ({} has {} ids)", text, id, file.string(), parts.vocabulary.size());
  place = text;
  parts.added.push_back({.text = text, .id = id});
}

TokenizerParts read_parts(const std::filesystem::path& file, const SpecialTokens* given) {
  const bool json = is_json(file);
  TokenizerParts parts = json ? read_tokenizer_json(file) : read_ranks(file);
  SpecialTokens specials;
  if (given != nullptr) specials = *given;
  else if (const auto next = static_cast<std::int32_t>(parts.texts.size()); !json) specials = {{std::string(end_of_text_name), next}, {std::string(pad_name), next + 1}};
  for (const auto& [text, id] : specials) add_special(file, text, id, parts);
  return parts;
}

std::vector<AddedToken> those_of(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> some;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(some), [&](const AddedToken& token) { return token.normalized == normalized; });
  return some;
}

}  // namespace

struct Tokenizer::Impl {
  explicit Impl(TokenizerParts from)
      : parts(std::move(from)),
        tokens(parts.vocabulary.begin(), parts.vocabulary.end()),
        encoder(parts.merges ? BytePairEncoder(tokens, *parts.merges, parts.rules) : BytePairEncoder(tokens)),
        given(those_of(parts.added, false)),
        normalized(those_of(parts.added, true)) {
    for (const std::string& text : parts.texts) token_bytes.push_back(parts.decoder ? parts.decoder->bytes(text) : text);
    parts.merges.reset();
  }

  std::int32_t id_of_added(std::string_view text) const {
    const auto found = std::find_if(parts.added.begin(), parts.added.end(), [&](const AddedToken& token) { return token.text == text; });
    return found == parts.added.end() ? -1 : found->id;
  }

  /// Appends the ids of `text`, which has no more added tokens; `first`: it begins the whole text.
  void encode_plain(std::string_view text, bool first, std::vector<std::int32_t>& ids) const {
    parts.pre_tokenizer(text, first, [&](std::string_view piece) { encoder.encode(piece, ids); });
  }

  void encode_normalized(std::string_view text, bool first, std::vector<std::int32_t>& ids) const {
    for (const auto& [begin, end, id] : normalized.parts(text)) {
      if (id >= 0) ids.push_back(id);
      else encode_plain(text.substr(begin, end - begin), first && begin == 0, ids);
    }
  }

  TokenizerParts parts;
  std::vector<std::string_view> tokens;  ///< parts.vocabulary
  BytePairEncoder encoder;
  AddedTokenFinder given, normalized;    ///< what is found in texts as they are given, and once they are normalized
  std::vector<std::string> token_bytes;  ///< [id], empty where there is none
};

Tokenizer::Tokenizer(const std::filesystem::path& file, const std::map<std::string, std::int32_t>* special_tokens)
    : impl_(std::make_unique<const Impl>(read_parts(file, special_tokens))) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::int32_t Tokenizer::vocab_size() const { return static_cast<std::int32_t>(impl_->parts.texts.size()); }
std::int32_t Tokenizer::ranks() const { return static_cast<std::int32_t>(impl_->parts.vocabulary.size()); }
std::int32_t Tokenizer::end_of_text() const { return impl_->id_of_added(end_of_text_name); }
std::int32_t Tokenizer::pad() const { return impl_->id_of_added(pad_name); }

std::int32_t Tokenizer::id_of(std::string_view token) const {
  const std::int32_t added = impl_->id_of_added(token);
  return added >= 0 ? added : impl_->encoder.id_of(token);
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  check(text.size() < UINT32_MAX / 3, "a text of {} bytes is too long to be encoded as one", text.size());
  std::string repaired;
  if (valid_utf8_prefix(text) < text.size()) {
    repaired = to_valid_utf8(text);
    text = repaired;
  }
  std::vector<std::int32_t> ids;
  if (add_special_tokens) ids = impl_->parts.before;
  // The steps must not see beyond an added token: for them, the text ends there.
  for (const auto& [begin, end, id] : impl_->given.parts(text)) {
    const std::string_view part = text.substr(begin, end - begin);
    if (id >= 0) ids.push_back(id);
    else if (impl_->parts.normalizer.steps.empty()) impl_->encode_normalized(part, begin == 0, ids);
    else impl_->encode_normalized(impl_->parts.normalizer(part), begin == 0, ids);
  }
  if (add_special_tokens) ids.insert(ids.end(), impl_->parts.behind.begin(), impl_->parts.behind.end());
  return ids;
}

std::vector<std::vector<std::int32_t>> Tokenizer::encode_batch(std::span<const std::string> texts, int threads, bool add_special_tokens) const {
  check(threads >= 1, "encode_batch: {} threads", threads);
  std::vector<std::vector<std::int32_t>> ids(texts.size());
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    try {
      for (std::size_t i; (i = next++) < texts.size();) ids[i] = encode(texts[i], add_special_tokens);
    } catch (...) {
      next = texts.size();
      const std::lock_guard lock(mutex);
      error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    const std::size_t useful = std::min(static_cast<std::size_t>(threads), texts.size());
    for (std::size_t i = 1; i < useful; ++i) helpers.emplace_back(work);
    work();
  }
  if (error) std::rethrow_exception(error);
  return ids;
}

std::string_view Tokenizer::bytes(std::int32_t id) const {
  if (id < 0 || id >= vocab_size() || impl_->parts.texts[static_cast<std::size_t>(id)].empty()) return replacement_character;
  return impl_->token_bytes[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  if (impl_->parts.decoder) {
    std::vector<std::string> tokens;
    for (const std::int32_t id : ids) {
      const bool none = id < 0 || id >= vocab_size() || impl_->parts.texts[static_cast<std::size_t>(id)].empty();
      tokens.emplace_back(none ? replacement_character : impl_->parts.texts[static_cast<std::size_t>(id)]);
    }
    return impl_->parts.decoder->decode(std::move(tokens));
  }
  std::string all;
  for (const std::int32_t id : ids) all += bytes(id);
  return valid_utf8_prefix(all) == all.size() ? all : to_valid_utf8(all);
}

}  // namespace kvmesh
