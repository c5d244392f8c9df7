// Byte-pair encoding by ranks: a token's id is its rank, and of all neighbours that together are a token, those of the lowest
// rank merge first (the leftmost of equals).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace kvmesh {

class BytePairEncoder {
 public:
  /// `tokens[rank]` are the token's bytes, empty where no token has that rank; the caller owns them and keeps them alive.
  /// No two are equal, and each of the 256 single bytes is a token.
  explicit BytePairEncoder(std::span<const std::string_view> tokens);

  /// Appends the ids of `piece`, which has 1 to 2^32 - 2 bytes. Takes n log n time.
  void encode(std::string_view piece, std::vector<std::int32_t>& ids) const;

 private:
  using Rank = std::uint32_t;
  static constexpr Rank none = UINT32_MAX;

  /// A place in the hash table. Up to 8 bytes are their own fingerprint, so that most comparisons need not see the token.
  struct Slot {
    std::uint64_t fingerprint = 0;
    std::uint32_t length = 0;  ///< 0: the place is free
    Rank rank = none;
  };
  std::size_t place(std::uint64_t fingerprint, std::size_t length) const;

  Rank rank_of(std::string_view bytes) const;
  Rank rank_of_two(const char* bytes) const;
  void merge_short(std::string_view piece, std::vector<std::int32_t>& ids) const;
  void merge_long(std::string_view piece, std::vector<std::int32_t>& ids) const;

  std::span<const std::string_view> tokens_;
  std::size_t longest_ = 0;   ///< bytes of the longest token
  std::vector<Slot> slots_;   ///< open addressing, at most half full; a power of two
  std::vector<Rank> of_one_;  ///< [256]
  std::vector<Rank> of_two_;  ///< [256 * 256], first byte * 256 + second: where every merge begins
};

}  // namespace kvmesh
