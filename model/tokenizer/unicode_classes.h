// Classes of code points as the regular expressions of tiktoken and of the tokenizers package have them, by table: a library of
// regular expressions brings those of its own Unicode version, and PCRE2's \s has U+180E besides, which theirs have not.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvmesh {

class UnicodeClasses {
 public:
  enum Class : std::uint8_t { other, letter, number, space };  ///< \p{L}, \p{N}, \s: no code point is two of them

  static const UnicodeClasses& get();

  Class class_of(char32_t code) const { return static_cast<Class>(flags_of(code) & 3); }
  bool is_numeric(char32_t code) const { return (flags_of(code) & numeric) != 0; }      ///< as Digits has it
  bool is_word(char32_t code) const { return (flags_of(code) & word) != 0; }            ///< \w as added tokens have it
  bool is_nfc_active(char32_t code) const { return (flags_of(code) & active) != 0; }    ///< NFC may change it or it may change others

 private:
  static constexpr std::uint8_t numeric = 4, word = 8, active = 16;  ///< flags beside the Class
  static constexpr std::size_t block_size = 256;

  UnicodeClasses();
  std::uint8_t flags_of(char32_t code) const {
    return flags_[code < block_size ? code : block_size * block_of_[code / block_size] + code % block_size];  // block 0 is the first
  }

  std::array<std::uint8_t, 0x110000 / block_size> block_of_{};  ///< code point / block_size -> block; equal blocks are kept once
  std::vector<std::uint8_t> flags_;                             ///< [block][code point % block_size]
};

}  // namespace kvmesh
