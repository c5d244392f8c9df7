// UTF-8: where it is ill-formed, and one character at a time where it is not.
#pragma once

#include <cstddef>
#include <string_view>

namespace kvmesh {

/// The Unicode replacement character U+FFFD.
inline constexpr std::string_view replacement_character = "\xef\xbf\xbd";

/// Bytes of the longest well-formed prefix of `text` (Unicode 3.9, table 3-7: no surrogates, nothing overlong or over U+10FFFF).
std::size_t valid_utf8_prefix(std::string_view text);

struct Character {
  char32_t code;
  std::size_t length;  ///< bytes
};

/// The character at `text[at]`; `text` is well-formed and `at` is a character's first byte.
inline Character character_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[at + i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xe0) return {(lead & 0x1f) << 6 | (byte(1) & 0x3f), 2};
  if (lead < 0xf0) return {(lead & 0x0f) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f), 4};
}

}  // namespace kvmesh
