// The scanner for GPT-2's pattern and its table of character classes.
#include "model/gpt2_pattern.h"

#include <algorithm>

#include "model/utf8.h"

namespace kvmesh {
namespace {

struct Range {
  char32_t first, last;
};

// letter_ranges, number_ranges and space_ranges: \p{L}, \p{N} and \s as tiktoken's regular expressions have them.
#include "model/unicode_classes.inc"

/// Bytes of the contraction at the start of `text`, which starts with an apostrophe; 0 if there is none.
std::size_t contraction_length(std::string_view text) {
  if (text.size() >= 2 && std::string_view("sdmt").find(text[1]) != std::string_view::npos) return 2;
  const std::string_view two = text.substr(1, 2);
  return two == "ll" || two == "ve" || two == "re" ? 3 : 0;
}

}  // namespace

Gpt2Pattern::Gpt2Pattern() {
  std::vector<std::uint8_t> all(0x110000, other);
  const auto fill = [&](const auto& ranges, Class value) {
    for (const Range& range : ranges) std::fill(all.begin() + range.first, all.begin() + range.last + 1, value);
  };
  fill(letter_ranges, letter);
  fill(number_ranges, number);
  fill(space_ranges, space);
  for (std::size_t block = 0; block < block_of_.size(); ++block) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(block * block_size);
    std::size_t at = 0;
    while (at < classes_.size() && !std::equal(begin, begin + block_size, classes_.begin() + static_cast<std::ptrdiff_t>(at))) at += block_size;
    if (at == classes_.size()) classes_.insert(classes_.end(), begin, begin + block_size);
    block_of_[block] = static_cast<std::uint8_t>(at / block_size);
  }
}

std::size_t Gpt2Pattern::piece_length(std::string_view text) const {
  if (text[0] == '\'') {
    if (const std::size_t length = contraction_length(text)) return length;
  }

  // " ?" and a run of one class.
  std::size_t at = text[0] == ' ' ? 1 : 0;
  if (at < text.size()) {
    Character next = character_at(text, at);
    const Class run = class_of(next.code);
    if (run != space) {
      do {
        at += next.length;
        if (at == text.size()) break;
        next = character_at(text, at);
      } while (class_of(next.code) == run);
      return at;
    }
  }

  // White space: all of it at the end of the text, else all but its last character, which may belong to what follows.
  std::size_t end = 0, last = 0;
  while (end < text.size()) {
    const Character next = character_at(text, end);
    if (class_of(next.code) != space) return last > 0 ? last : end;
    last = end;
    end += next.length;
  }
  return end;
}

}  // namespace kvmesh
