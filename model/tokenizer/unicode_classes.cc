// The table of classes, put together from the ranges that scripts found in the packages.
#include "model/tokenizer/unicode_classes.h"

#include <algorithm>
#include <cstddef>

namespace kvmesh {
namespace {

struct Range {
  char32_t first, last;
};

// letter_ranges, number_ranges and space_ranges, of tiktoken and tokenizers alike; what tokenizers has besides.
#include "model/tokenizer/tokenizer_classes.inc"
#include "model/tokenizer/unicode_classes.inc"

}  // namespace

const UnicodeClasses& UnicodeClasses::get() {
  static const UnicodeClasses classes;
  return classes;
}

UnicodeClasses::UnicodeClasses() {
  std::vector<std::uint8_t> all(0x110000, other);
  const auto add = [&](const auto& ranges, int flags) {
    for (const Range& range : ranges) {
      for (char32_t code = range.first; code <= range.last; ++code) all[code] = static_cast<std::uint8_t>(all[code] | flags);
    }
  };
  add(letter_ranges, letter | word);
  add(number_ranges, number | numeric);
  add(space_ranges, space);
  add(more_numeric_ranges, numeric);
  add(more_word_ranges, word);
  add(nfc_active_ranges, active);
  for (std::size_t block = 0; block < block_of_.size(); ++block) {
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(block * block_size);
    std::size_t at = 0;
    while (at < flags_.size() && !std::equal(begin, begin + block_size, flags_.begin() + static_cast<std::ptrdiff_t>(at))) at += block_size;
    if (at == flags_.size()) flags_.insert(flags_.end(), begin, begin + block_size);
    block_of_[block] = static_cast<std::uint8_t>(at / block_size);
  }
}

}  // namespace kvmesh
