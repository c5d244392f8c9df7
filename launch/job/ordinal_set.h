// Which ordinals are finished. Rows start in order, so that all but a few lie below the first that is not: only from there on there is
// a bit each.
#pragma once

#include "runtime/check.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>

namespace kvmesh {

class OrdinalSet {
 public:
  bool contains(std::int64_t ordinal) const {
    if (ordinal < base_) return true;
    const auto at = static_cast<std::uint64_t>(ordinal - base_);
    return at / 64 < words_.size() && (words_[at / 64] >> at % 64 & 1) != 0;
  }

  /// The `span` ordinals from `first` on; false, and nothing is added, if one of them is there already.
  bool add(std::int64_t first, std::int64_t span) {
    for (std::int64_t o = first; o < first + span; ++o) {
      if (contains(o)) return false;
    }
    for (std::int64_t o = first; o < first + span; ++o) {
      const auto at = static_cast<std::uint64_t>(o - base_);
      if (at / 64 >= words_.size()) words_.resize(at / 64 + 1);
      words_[at / 64] |= std::uint64_t{1} << at % 64;
    }
    for (; !words_.empty() && words_.front() == ~std::uint64_t{0}; base_ += 64) words_.pop_front();
    count_ += span;
    end_ = std::max(end_, first + span);
    return true;
  }

  std::int64_t count() const { return count_; }
  std::int64_t end() const { return end_; }  ///< one more than the largest
  bool operator==(const OrdinalSet&) const = default;

  /// As bytes, for other ranks of the same job.
  std::string pack() const {
    std::string bytes(24 + 8 * words_.size(), '\0');
    const std::int64_t head[3] = {base_, count_, end_};
    std::memcpy(bytes.data(), head, sizeof head);
    for (std::size_t i = 0; i < words_.size(); ++i) std::memcpy(bytes.data() + 24 + 8 * i, &words_[i], 8);
    return bytes;
  }
  static OrdinalSet unpack(std::string_view bytes) {
    check(bytes.size() >= 24 && bytes.size() % 8 == 0, "a packed set of ordinals has {} bytes", bytes.size());
    OrdinalSet set;
    std::int64_t head[3];
    std::memcpy(head, bytes.data(), sizeof head);
    set.base_ = head[0], set.count_ = head[1], set.end_ = head[2];
    set.words_.resize(bytes.size() / 8 - 3);
    for (std::size_t i = 0; i < set.words_.size(); ++i) std::memcpy(&set.words_[i], bytes.data() + 24 + 8 * i, 8);
    return set;
  }

 private:
  std::int64_t base_ = 0;            // a multiple of 64; all below are in the set
  std::deque<std::uint64_t> words_;  // from base_ on; the first is never full
  std::int64_t count_ = 0, end_ = 0;
};

}  // namespace kvmesh
