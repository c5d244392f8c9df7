// Tokens that are cut out of a text before it is split and encoded: special tokens and others that stand beside the vocabulary.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvmesh {

struct AddedToken {
  std::string text;
  std::int32_t id = -1;
  bool single_word = false;  ///< found only where no part of a word stands beside it
  bool lstrip = false;       ///< takes the white space before it
  bool rstrip = false;       ///< takes the white space behind it
  bool normalized = false;   ///< found in the normalized text, as its own text normalized
};

/// Finds a set of added tokens as the tokenizers package does: the first that begins, of those that begin there the longest.
class AddedTokenFinder {
 public:
  struct Part {
    std::size_t begin, end;
    std::int32_t id;  ///< -1: text without added tokens
  };

  /// No text is empty or twice in `tokens`.
  explicit AddedTokenFinder(std::span<const AddedToken> tokens = {});

  /// The parts of `text` in their order, none empty. Those without added tokens do not overlap; a token's has what it strips.
  std::vector<Part> parts(std::string_view text) const;

 private:
  /// The longest token at text[at]; null if there is none.
  const AddedToken* longest_at(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;
  std::array<bool, 256> begins_{};                                       ///< whether a token begins with this byte
  std::map<std::pair<std::uint32_t, unsigned char>, std::uint32_t> next_;  ///< a trie: node and byte to node; the root is 0
  std::vector<std::int32_t> token_of_;                                   ///< [node], index in tokens_ or -1
};

}  // namespace kvmesh
