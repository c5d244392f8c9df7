// Text to token ids and back, by byte-pair encoding: tiktoken's ranks with GPT-2's pattern, or Hugging Face's tokenizer.json.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

class Tokenizer {
 public:
  /// `file` is a tokenizer.json if its name ends in .json or a brace is the first in it (docs/tokenizers.md), else in tiktoken's text
  /// format. The latter's special tokens are `special_tokens`; without them <|endoftext|> is the first id after the ranks and
  /// <|pad|> the next. To a tokenizer.json's they are added, if it has them not. An Error names file and line or field.
  explicit Tokenizer(const std::filesystem::path& file, const std::map<std::string, std::int32_t>* special_tokens = nullptr);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  std::int32_t vocab_size() const;       ///< one more than the largest id
  std::int32_t ranks() const;            ///< one more than the largest id that is no special or added token's alone
  std::int32_t end_of_text() const;      ///< of the special or added token <|endoftext|>; -1 if there is none
  std::int32_t pad() const;              ///< the same of <|pad|>
  /// Of the special or added token with this text, else of the token with these bytes; -1 if there is none.
  std::int32_t id_of(std::string_view token) const;

  /// Special and added tokens in the text become their ids (as tiktoken's allowed_special="all"). Invalid UTF-8 bytes are first
  /// replaced by U+FFFD, as Python's errors="replace" does. `add_special_tokens`: with what a tokenizer.json's post_processor puts
  /// before and behind a text, <s> say (a tokenizer.tiktoken nothing).
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = true) const;
  /// encode() of each text, in order, on `threads` threads.
  std::vector<std::vector<std::int32_t>> encode_batch(std::span<const std::string> texts, int threads, bool add_special_tokens = true) const;

  /// The token's bytes within a text, which may end within a character; U+FFFD's bytes for an id that no token has. The bytes of
  /// many, as UTF-8, are what decode() gives of them, but for two things that a tokenizer.json of Llama 2's kind wants: decode()
  /// drops the space that begins a text, and gives a run of tokens <0x00> to <0xFF> that is no UTF-8 as a U+FFFD for each.
  std::string_view bytes(std::int32_t id) const;
  /// The ids' text, special tokens with it; bytes that are no UTF-8 become U+FFFD, as Python's errors="replace" does.
  std::string decode(std::span<const std::int32_t> ids) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

/// `bytes` as valid UTF-8: each maximal ill-formed part becomes one U+FFFD (Unicode 3.9, as Python's errors="replace").
std::string to_valid_utf8(std::string_view bytes);

}  // namespace kvmesh
