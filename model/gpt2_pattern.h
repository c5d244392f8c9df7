// GPT-2's pattern, which cuts text into the pieces that byte-pair encoding must not cross.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace kvmesh {

/// The pattern as tiktoken writes it:
///   '(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s
/// It matches at every place in every text, so pieces leave nothing out. It is scanned by hand, with the classes as tiktoken has
/// them: a regular-expression library brings those of its own Unicode version, and PCRE2's \s has U+180E besides, tiktoken's has not.
class Gpt2Pattern {
 public:
  Gpt2Pattern();

  /// Bytes of the first piece of `text`, which is well-formed UTF-8 and not empty; its end is the end that $ matches.
  std::size_t piece_length(std::string_view text) const;

 private:
  enum Class : std::uint8_t { other, letter, number, space };
  static constexpr std::size_t block_size = 256;

  Class class_of(char32_t code) const {
    return static_cast<Class>(classes_[block_size * block_of_[code / block_size] + code % block_size]);
  }

  std::array<std::uint8_t, 0x110000 / block_size> block_of_{};  ///< code point / block_size -> block; equal blocks are kept once
  std::vector<std::uint8_t> classes_;                           ///< [block][code point % block_size] -> Class
};

}  // namespace kvmesh
