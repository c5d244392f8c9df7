// The tokenizer: special tokens are cut out of the text, GPT-2's pattern cuts the rest into pieces, each piece is encoded.
#include "model/tokenizer.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "model/bpe.h"
#include "model/gpt2_pattern.h"
#include "model/tiktoken_file.h"
#include "model/utf8.h"
#include "runtime/check.h"

namespace kvmesh {
namespace {

constexpr std::string_view end_of_text_name = "<|endoftext|>", pad_name = "<|pad|>";

using SpecialTokens = std::map<std::string, std::int32_t>;

SpecialTokens default_specials(const TiktokenFile& ranks) {
  const auto next = static_cast<std::int32_t>(ranks.tokens.size());
  return {{std::string(end_of_text_name), next}, {std::string(pad_name), next + 1}};
}

/// Where special tokens stand in a text.
class SpecialFinder {
 public:
  explicit SpecialFinder(const SpecialTokens& specials) {
    for (const auto& [text, id] : specials) begins_with_[static_cast<unsigned char>(text[0])].emplace_back(text, id);
    for (auto& candidates : begins_with_) {
      std::sort(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
    }
  }

  struct Found {
    std::size_t begin, length;
    std::int32_t id;
  };
  /// The first special token at or after `from`, and the longest of those that begin there; {text.size(), 0, -1} if there is none.
  Found find(std::string_view text, std::size_t from) const {
    for (; from < text.size(); ++from) {
      for (const auto& [special, id] : begins_with_[static_cast<unsigned char>(text[from])]) {
        if (text.substr(from).starts_with(special)) return {from, special.size(), id};
      }
    }
    return {text.size(), 0, -1};
  }

 private:
  std::array<std::vector<std::pair<std::string, std::int32_t>>, 256> begins_with_;  ///< [first byte], the longest first
};

}  // namespace

struct Tokenizer::Impl {
  Impl(const std::filesystem::path& file, const SpecialTokens* given)
      : ranks(read_tiktoken_file(file)), specials(given != nullptr ? *given : default_specials(ranks)), token_of(ranks.tokens) {
    for (const auto& [text, id] : specials) add_special(file, text, id);
    finder.emplace(specials);
    encoder.emplace(ranks.tokens);
  }

  void add_special(const std::filesystem::path& file, const std::string& text, std::int32_t id) {
    check(!text.empty() && valid_utf8_prefix(text) == text.size(), "special token \"{}\": a special token is a text of at least one character",
          to_valid_utf8(text));
    check(id >= 0 && id < rank_limit, "special token \"{}\": its id {} is not within 0 to {}", text, id, rank_limit - 1);
    if (static_cast<std::size_t>(id) >= token_of.size()) token_of.resize(static_cast<std::size_t>(id) + 1);
    std::string_view& place = token_of[static_cast<std::size_t>(id)];
    check(place.empty(), "special token \"{}\": its id {} is that of another token ({} has {} ranks)", text, id, file.string(), ranks.count);
    place = text;
  }

  std::int32_t id_of_special(std::string_view text) const {
    const auto found = specials.find(std::string(text));
    return found == specials.end() ? -1 : found->second;
  }

  TiktokenFile ranks;
  SpecialTokens specials;
  std::vector<std::string_view> token_of;  ///< [id], empty where there is none; owned by ranks and specials
  Gpt2Pattern pattern;
  std::optional<SpecialFinder> finder;
  std::optional<BytePairEncoder> encoder;
};

Tokenizer::Tokenizer(const std::filesystem::path& file, const std::map<std::string, std::int32_t>* special_tokens)
    : impl_(std::make_unique<const Impl>(file, special_tokens)) {}
Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::int32_t Tokenizer::vocab_size() const { return static_cast<std::int32_t>(impl_->token_of.size()); }
std::int32_t Tokenizer::ranks() const { return static_cast<std::int32_t>(impl_->ranks.tokens.size()); }
std::int32_t Tokenizer::end_of_text() const { return impl_->id_of_special(end_of_text_name); }
std::int32_t Tokenizer::pad() const { return impl_->id_of_special(pad_name); }

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, [[maybe_unused]] bool add_special_tokens) const {
  check(text.size() < UINT32_MAX / 3, "a text of {} bytes is too long to be encoded as one", text.size());
  std::string repaired;
  if (valid_utf8_prefix(text) < text.size()) {
    repaired = to_valid_utf8(text);
    text = repaired;
  }
  std::vector<std::int32_t> ids;
  for (std::size_t at = 0; at < text.size();) {
    const SpecialFinder::Found special = impl_->finder->find(text, at);
    // The pattern must not see beyond the special token: for it, the text ends there.
    std::string_view ordinary = text.substr(at, special.begin - at);
    while (!ordinary.empty()) {
      const std::size_t length = impl_->pattern.piece_length(ordinary);
      impl_->encoder->encode(ordinary.substr(0, length), ids);
      ordinary.remove_prefix(length);
    }
    if (special.length > 0) ids.push_back(special.id);
    at = special.begin + special.length;
  }
  return ids;
}

std::vector<std::vector<std::int32_t>> Tokenizer::encode_batch(std::span<const std::string> texts, int threads) const {
  check(threads >= 1, "encode_batch: {} threads", threads);
  std::vector<std::vector<std::int32_t>> ids(texts.size());
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr error;
  const auto work = [&] {
    try {
      for (std::size_t i; (i = next++) < texts.size();) ids[i] = encode(texts[i]);
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
  if (id < 0 || id >= vocab_size() || impl_->token_of[static_cast<std::size_t>(id)].empty()) return replacement_character;
  return impl_->token_of[static_cast<std::size_t>(id)];
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  std::string all;
  for (const std::int32_t id : ids) all += bytes(id);
  return valid_utf8_prefix(all) == all.size() ? all : to_valid_utf8(all);
}

}  // namespace kvmesh
