// Text to token ids and back: byte-pair encoding over tiktoken's ranks with GPT-2's pattern and special tokens.
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
  /// `file` in tiktoken's text format. Without `special_tokens`, <|endoftext|> is the first id after the ranks and <|pad|> the
  /// next. An Error names file and line.
  explicit Tokenizer(const std::filesystem::path& file, const std::map<std::string, std::int32_t>* special_tokens = nullptr);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  std::int32_t vocab_size() const;       ///< one more than the largest id
  std::int32_t ranks() const;            ///< one more than the largest id that is no special token's
  std::int32_t end_of_text() const;      ///< -1 if there is none
  std::int32_t pad() const;              ///< -1 if there is none

  /// Special tokens in the text become their ids (as tiktoken's allowed_special="all"). Invalid UTF-8 bytes are first replaced
  /// by U+FFFD, as Python's errors="replace" does. `add_special_tokens`: with what the tokenizer's file puts before and behind a text
  /// (a tokenizer.tiktoken nothing).
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens = true) const;
  /// encode() of each text, in order, on `threads` threads.
  std::vector<std::vector<std::int32_t>> encode_batch(std::span<const std::string> texts, int threads) const;

  /// The token's bytes, which may end within a character; U+FFFD's bytes for an id that no token has.
  std::string_view bytes(std::int32_t id) const;
  /// The bytes of all ids as UTF-8 text; bytes that are no UTF-8 become U+FFFD, as Python's errors="replace" does.
  std::string decode(std::span<const std::int32_t> ids) const;

 private:
  struct Impl;
  std::unique_ptr<const Impl> impl_;
};

/// `bytes` as valid UTF-8: each maximal ill-formed part becomes one U+FFFD (Unicode 3.9, as Python's errors="replace").
std::string to_valid_utf8(std::string_view bytes);

}  // namespace kvmesh
