// Byte-pair encoding. A piece that is a token is looked up; a short one is merged by scanning its few parts for the lowest rank,
// a long one with a heap. All three give the same ids.
#include "model/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <queue>

namespace kvmesh {
namespace {

constexpr std::size_t short_piece = 64;  ///< bytes from which the heap is faster than the scan

template <typename T>
std::uint64_t load(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return value;
}

/// With the length this is injective for up to 8 bytes; for more it is a hash.
std::uint64_t fingerprint(std::string_view bytes) {
  const char* const data = bytes.data();
  const std::size_t n = bytes.size();
  if (n >= 8) {
    std::uint64_t hash = load<std::uint64_t>(data + n - 8);
    for (std::size_t i = 0; i + 8 < n; i += 8) hash = std::rotl(hash ^ load<std::uint64_t>(data + i), 29) * 0x9e3779b97f4a7c15;
    return hash;
  }
  if (n >= 4) return load<std::uint32_t>(data) | load<std::uint32_t>(data + n - 4) << 32;
  if (n >= 2) return load<std::uint16_t>(data) | load<std::uint16_t>(data + n - 2) << 16;
  return load<std::uint8_t>(data);
}

}  // namespace

BytePairEncoder::BytePairEncoder(std::span<const std::string_view> tokens)
    : tokens_(tokens), of_one_(256), of_two_(256 * 256, none) {
  const auto empty = std::count(tokens.begin(), tokens.end(), std::string_view());
  slots_.resize(std::bit_ceil(2 * (tokens.size() - static_cast<std::size_t>(empty))));
  for (Rank rank = 0; rank < tokens.size(); ++rank) {
    const std::string_view token = tokens[rank];
    if (token.empty()) continue;
    longest_ = std::max(longest_, token.size());
    const std::uint64_t print = fingerprint(token);
    std::size_t at = place(print, token.size());
    while (slots_[at].length != 0) at = (at + 1) & (slots_.size() - 1);
    slots_[at] = {print, static_cast<std::uint32_t>(token.size()), rank};
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(token[i]); };
    if (token.size() == 1) of_one_[byte(0)] = rank;
    if (token.size() == 2) of_two_[256u * byte(0) + byte(1)] = rank;
  }
}

std::size_t BytePairEncoder::place(std::uint64_t fingerprint, std::size_t length) const {
  const std::uint64_t mixed = (fingerprint ^ length << 56) * 0x9e3779b97f4a7c15;
  return (mixed ^ mixed >> 32) & (slots_.size() - 1);
}

BytePairEncoder::Rank BytePairEncoder::rank_of(std::string_view bytes) const {
  if (bytes.size() > longest_) return none;
  const std::uint64_t print = fingerprint(bytes);
  for (std::size_t at = place(print, bytes.size());; at = (at + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[at];
    if (slot.length == 0) return none;
    if (slot.fingerprint == print && slot.length == bytes.size() && (bytes.size() <= 8 || tokens_[slot.rank] == bytes)) return slot.rank;
  }
}

BytePairEncoder::Rank BytePairEncoder::rank_of_two(const char* bytes) const {
  return of_two_[256u * static_cast<unsigned char>(bytes[0]) + static_cast<unsigned char>(bytes[1])];
}

void BytePairEncoder::encode(std::string_view piece, std::vector<std::int32_t>& ids) const {
  if (const Rank rank = rank_of(piece); rank != none) {
    ids.push_back(static_cast<std::int32_t>(rank));
  } else if (piece.size() < short_piece) {
    merge_short(piece, ids);
  } else {
    merge_long(piece, ids);
  }
}

void BytePairEncoder::merge_short(std::string_view piece, std::vector<std::int32_t>& ids) const {
  struct Part {
    std::uint32_t start;
    Rank id;
    Rank merged;  ///< the rank of this part and the next together
  };
  std::array<Part, short_piece + 1> parts;  // the last one begins at the piece's end
  std::size_t count = piece.size();
  for (std::size_t i = 0; i < count; ++i) {
    const Rank merged = i + 1 < count ? rank_of_two(piece.data() + i) : none;
    parts[i] = {static_cast<std::uint32_t>(i), of_one_[static_cast<unsigned char>(piece[i])], merged};
  }
  parts[count] = {static_cast<std::uint32_t>(count), none, none};

  const auto merged_rank = [&](std::size_t i) {
    return i + 1 < count ? rank_of(piece.substr(parts[i].start, parts[i + 2].start - parts[i].start)) : none;
  };
  while (true) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < count; ++i) {
      if (parts[i].merged < parts[best].merged) best = i;
    }
    if (parts[best].merged == none) break;
    parts[best].id = parts[best].merged;
    std::copy(parts.begin() + best + 2, parts.begin() + count + 1, parts.begin() + best + 1);
    --count;
    parts[best].merged = merged_rank(best);
    if (best > 0) parts[best - 1].merged = merged_rank(best - 1);
  }
  for (std::size_t i = 0; i < count; ++i) ids.push_back(static_cast<std::int32_t>(parts[i].id));
}

void BytePairEncoder::merge_long(std::string_view piece, std::vector<std::int32_t>& ids) const {
  /// The part that begins at this byte, if one does.
  struct Part {
    std::uint32_t previous;  ///< where the part before begins
    std::uint32_t end;       ///< where the part after begins
    Rank id;
    Rank merged;  ///< the rank of this part and the next together
  };
  const auto size = static_cast<std::uint32_t>(piece.size());
  std::vector<Part> parts(size);
  // Ordered by rank, then by place. A merge that has become impossible stays in the heap: its part's `merged` differs by then.
  std::vector<std::uint64_t> candidates;
  candidates.reserve(size);
  const auto key = [](Rank rank, std::uint32_t start) { return std::uint64_t{rank} << 32 | start; };
  for (std::uint32_t i = 0; i < size; ++i) {
    const Rank merged = i + 1 < size ? rank_of_two(piece.data() + i) : none;
    parts[i] = {i - 1, i + 1, of_one_[static_cast<unsigned char>(piece[i])], merged};
    if (merged != none) candidates.push_back(key(merged, i));
  }
  std::priority_queue heap(std::greater<>(), std::move(candidates));

  const auto update = [&](std::uint32_t start) {
    const std::uint32_t next = parts[start].end;
    const Rank merged = next < size ? rank_of(piece.substr(start, parts[next].end - start)) : none;
    parts[start].merged = merged;
    if (merged != none) heap.push(key(merged, start));
  };
  while (!heap.empty()) {
    const auto start = static_cast<std::uint32_t>(heap.top());
    const auto rank = static_cast<Rank>(heap.top() >> 32);
    heap.pop();
    if (parts[start].merged != rank) continue;
    Part& right = parts[parts[start].end];
    right.merged = none;
    parts[start].id = rank;
    parts[start].end = right.end;
    if (right.end < size) parts[right.end].previous = start;
    update(start);
    if (start > 0) update(parts[start].previous);
  }
  for (std::uint32_t i = 0; i < size; i = parts[i].end) ids.push_back(static_cast<std::int32_t>(parts[i].id));
}

}  // namespace kvmesh
