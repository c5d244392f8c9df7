// Byte-pair encoding: a piece's symbols merge pair by pair, the pair of the lowest rank first (the leftmost of equals).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

/// Neighbours with the ids `left` and `right` become `id`. A merge's rank is its place in the list of merges.
struct Merge {
  std::int32_t left, right, id;
};

class BytePairEncoder {
 public:
  /// What a piece's symbols are, before any merge, and which pieces are not merged.
  struct Rules {
    bool characters = false;         ///< a symbol is a character (of UTF-8), else a byte
    bool byte_fallback = false;      ///< a character that is no token is the tokens <0x00> to <0xFF> of its bytes, if they all are there
    std::int32_t unknown = -1;       ///< what a symbol that is no token becomes; -1: nothing, it is left out
    bool fuse_unknown = false;       ///< one `unknown` for several in a row
    bool tokens_stay_whole = false;  ///< a piece that is a token is not merged, whatever merging would make of it
  };

  /// `tokens[id]` are the token's bytes, empty where there is none; the caller owns them and keeps them alive. No two are equal.
  /// The ids of `merges` are tokens'; no two merges have the same pair. Ids lie below 2^20, ranks below 2^24 - 1.
  BytePairEncoder(std::span<const std::string_view> tokens, std::span<const Merge> merges, const Rules& rules);
  /// tiktoken's rules: a token's id is its rank, two neighbours merge if together they are a token, tokens stay whole. Each of
  /// the 256 single bytes is a token.
  explicit BytePairEncoder(std::span<const std::string_view> tokens);

  /// Appends the ids of `piece`, which has 1 to 2^32 - 2 bytes (well-formed UTF-8 if symbols are characters). Takes n log n time.
  void encode(std::string_view piece, std::vector<std::int32_t>& ids) const;
  /// -1: no token has these bytes.
  std::int32_t id_of(std::string_view bytes) const;

 private:
  using Rank = std::uint32_t;
  static constexpr Rank never = UINT32_MAX;

  /// A place in the hash table of tokens. Up to 8 bytes are their own fingerprint, so that most comparisons need not see the token.
  struct Slot {
    std::uint64_t fingerprint = 0;
    std::uint32_t length = 0;  ///< 0: the place is free
    std::uint32_t id : 31 = 0;
    std::uint32_t whole : 1 = 0;  ///< a piece of these bytes is encoded as this token
  };
  /// A place in the hash table of pairs: left and right id and rank, in 20, 20 and 24 bits so that a cache holds many. All ones: free.
  using Pair = std::uint64_t;
  static constexpr Pair no_pair = UINT64_MAX;

  void add_token(std::int32_t id);
  void add_pair(std::int32_t left, std::int32_t right, Rank rank);
  /// For each way to cut each token into two tokens the pair of these.
  void add_pairs_of_tokens();
  /// What encode() makes of each single byte and of each two, by tables.
  void fill_byte_tables();
  const Slot* find(std::string_view bytes) const;
  std::size_t place(std::uint64_t fingerprint, std::size_t length) const;
  Rank rank_of(std::int32_t left, std::int32_t right) const;

  /// Writes the symbols of `piece`, of which there are at most as many as bytes, and returns how many.
  std::size_t write_symbols(std::string_view piece, std::int32_t* symbols) const;
  void merge(std::string_view piece, std::vector<std::int32_t>& ids) const;
  template <typename FirstRank>
  void merge_short(std::span<const std::int32_t> symbols, FirstRank first_rank, std::vector<std::int32_t>& ids) const;
  template <typename FirstRank>
  void merge_long(std::span<const std::int32_t> symbols, FirstRank first_rank, std::vector<std::int32_t>& ids) const;

  std::span<const std::string_view> tokens_;
  Rules rules_;
  std::size_t longest_ = 0;             ///< bytes of the longest token
  std::vector<Slot> slots_;             ///< open addressing, at most half full; a power of two
  std::vector<Pair> pairs_;             ///< the same
  std::size_t pair_count_ = 0;
  std::vector<std::int32_t> merged_;    ///< [rank] -> id; empty: they are the same
  std::vector<std::int32_t> of_byte_;   ///< [256], the token or -1
  std::vector<std::int32_t> fallback_;  ///< [256], the tokens <0x00> to <0xFF>, or -1
  std::vector<Rank> of_two_;            ///< [256 * 256], first byte * 256 + second; empty unless every byte is a symbol
};

}  // namespace kvmesh
