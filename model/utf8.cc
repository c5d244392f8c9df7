// UTF-8 validation and repair, by table 3-7 of the Unicode standard.
#include "model/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "model/tokenizer/tokenizer.h"

namespace kvmesh {
namespace {

/// What stands at the start of `text`: a whole character, or the maximal part that could have begun one (at least one byte).
struct Sequence {
  std::size_t length;
  bool whole;
};

Sequence first_sequence(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xc2 || lead > 0xf4) return {1, false};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte's bounds keep out overlong forms (e0, f0), surrogates (ed) and what lies above U+10FFFF (f4).
  const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < length; ++i) {
    if (i >= text.size() || byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xbf)) return {i, false};
  }
  return {length, true};
}

}  // namespace

std::size_t valid_utf8_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    std::uint64_t eight;
    if (at + sizeof(eight) <= text.size()) {
      std::memcpy(&eight, text.data() + at, sizeof(eight));
      if ((eight & 0x8080808080808080) == 0) {
        at += sizeof(eight);
        continue;
      }
    }
    const Sequence sequence = first_sequence(text.substr(at));
    if (!sequence.whole) return at;
    at += sequence.length;
  }
  return at;
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const std::size_t valid = valid_utf8_prefix(bytes);
    text += bytes.substr(0, valid);
    bytes.remove_prefix(valid);
    if (bytes.empty()) break;
    text += replacement_character;
    bytes.remove_prefix(first_sequence(bytes).length);
  }
  return text;
}

}  // namespace kvmesh
