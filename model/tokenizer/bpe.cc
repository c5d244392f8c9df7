// Byte-pair encoding. A piece that merging would make one token is looked up; a short one is merged by scanning its few symbols
// for the lowest rank, a long one with a heap. All three give the same ids.
#include "model/tokenizer/bpe.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <queue>

#include "model/utf8.h"
#include "runtime/check.h"

namespace kvmesh {
namespace {

constexpr std::size_t short_piece = 64;  ///< symbols from which the heap is faster than the scan
constexpr std::int32_t none = -1;

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

constexpr int id_bits = 20, rank_bits = 24;

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << id_bits | static_cast<std::uint32_t>(right);
}

std::size_t pair_place(std::uint64_t key, std::size_t size) {
  const std::uint64_t mixed = key * 0x9e3779b97f4a7c15;
  return (mixed ^ mixed >> 32) & (size - 1);
}

}  // namespace

BytePairEncoder::BytePairEncoder(std::span<const std::string_view> tokens, std::span<const Merge> merges, const Rules& rules)
    : tokens_(tokens), rules_(rules) {
  const auto empty = static_cast<std::size_t>(std::count(tokens.begin(), tokens.end(), std::string_view()));
  slots_.resize(std::bit_ceil(2 * std::max<std::size_t>(tokens.size() - empty, 1)));
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) add_token(static_cast<std::int32_t>(id));
  }
  check(tokens.size() <= std::size_t{1} << id_bits && merges.size() < (std::size_t{1} << rank_bits) - 1, "{} tokens and {} merges are too many",
        tokens.size(), merges.size());
  pairs_.resize(std::bit_ceil(2 * std::max<std::size_t>(merges.size(), 1)), no_pair);
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    add_pair(merges[rank].left, merges[rank].right, static_cast<Rank>(rank));
    merged_.push_back(merges[rank].id);
  }
  fill_byte_tables();
  std::vector<std::int32_t> ids;
  for (Slot& slot : slots_) {
    if (slot.length == 0) continue;
    ids.clear();
    if (!rules_.tokens_stay_whole) merge(tokens_[slot.id], ids);
    slot.whole = rules_.tokens_stay_whole || (ids.size() == 1 && ids[0] == static_cast<std::int32_t>(slot.id));
  }
}

BytePairEncoder::BytePairEncoder(std::span<const std::string_view> tokens) : BytePairEncoder(tokens, {}, {.tokens_stay_whole = true}) {
  merged_.clear();
  add_pairs_of_tokens();
  fill_byte_tables();
}

void BytePairEncoder::add_pairs_of_tokens() {
  std::vector<bool> is_length(longest_ + 1);
  for (const std::string_view token : tokens_) is_length[token.size()] = !token.empty();
  for (std::size_t rank = 0; rank < tokens_.size(); ++rank) {
    const std::string_view token = tokens_[rank];
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      if (!is_length[cut] || !is_length[token.size() - cut]) continue;
      const Slot* const left = find(token.substr(0, cut));
      const Slot* const right = left != nullptr ? find(token.substr(cut)) : nullptr;
      if (right != nullptr) add_pair(left->id, right->id, static_cast<Rank>(rank));
    }
  }
}

void BytePairEncoder::add_token(std::int32_t id) {
  const std::string_view token = tokens_[static_cast<std::size_t>(id)];
  longest_ = std::max(longest_, token.size());
  const std::uint64_t print = fingerprint(token);
  std::size_t at = place(print, token.size());
  while (slots_[at].length != 0) at = (at + 1) & (slots_.size() - 1);
  slots_[at] = {print, static_cast<std::uint32_t>(token.size()), static_cast<std::uint32_t>(id) & INT32_MAX, rules_.tokens_stay_whole};
}

void BytePairEncoder::add_pair(std::int32_t left, std::int32_t right, Rank rank) {
  const auto put = [this](Pair pair) {
    std::size_t at = pair_place(pair >> rank_bits, pairs_.size());
    while (pairs_[at] != no_pair) at = (at + 1) & (pairs_.size() - 1);
    pairs_[at] = pair;
  };
  if (2 * ++pair_count_ > pairs_.size()) {
    std::vector<Pair> old(2 * pairs_.size(), no_pair);
    old.swap(pairs_);
    for (const Pair pair : old) {
      if (pair != no_pair) put(pair);
    }
  }
  put(pair_key(left, right) << rank_bits | rank);
}

void BytePairEncoder::fill_byte_tables() {
  of_byte_.assign(256, none);
  fallback_.assign(256, none);
  bool all = !rules_.characters;
  for (int b = 0; b < 256; ++b) {
    const char c = static_cast<char>(b);
    of_byte_[static_cast<std::size_t>(b)] = id_of({&c, 1});
    all = all && of_byte_[static_cast<std::size_t>(b)] != none;
    if (rules_.byte_fallback) fallback_[static_cast<std::size_t>(b)] = id_of(fmt::format("<0x{:02X}>", b));
  }
  of_two_.clear();
  if (!all) return;
  for (std::size_t first = 0; first < 256; ++first) {
    for (std::size_t second = 0; second < 256; ++second) of_two_.push_back(rank_of(of_byte_[first], of_byte_[second]));
  }
}

std::size_t BytePairEncoder::place(std::uint64_t fingerprint, std::size_t length) const {
  const std::uint64_t mixed = (fingerprint ^ length << 56) * 0x9e3779b97f4a7c15;
  return (mixed ^ mixed >> 32) & (slots_.size() - 1);
}

const BytePairEncoder::Slot* BytePairEncoder::find(std::string_view bytes) const {
  if (bytes.size() > longest_) return nullptr;
  const std::uint64_t print = fingerprint(bytes);
  for (std::size_t at = place(print, bytes.size());; at = (at + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[at];
    if (slot.length == 0) return nullptr;
    if (slot.fingerprint != print || slot.length != bytes.size()) continue;
    if (bytes.size() <= 8 || tokens_[slot.id] == bytes) return &slot;
  }
}

std::int32_t BytePairEncoder::id_of(std::string_view bytes) const {
  const Slot* const slot = bytes.empty() ? nullptr : find(bytes);
  return slot != nullptr ? slot->id : none;
}

BytePairEncoder::Rank BytePairEncoder::rank_of(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key = pair_key(left, right);
  for (std::size_t at = pair_place(key, pairs_.size());; at = (at + 1) & (pairs_.size() - 1)) {
    const Pair pair = pairs_[at];
    if (pair >> rank_bits == key) return static_cast<Rank>(pair & ((1u << rank_bits) - 1));
    if (pair == no_pair) return never;
  }
}

void BytePairEncoder::encode(std::string_view piece, std::vector<std::int32_t>& ids) const {
  if (const Slot* const slot = find(piece); slot != nullptr && slot->whole) ids.push_back(slot->id);
  else merge(piece, ids);
}

std::size_t BytePairEncoder::write_symbols(std::string_view piece, std::int32_t* symbols) const {
  std::size_t count = 0;
  bool unknown = false;  // one that is not yet written
  const auto write_unknown = [&] {
    if (unknown) symbols[count++] = rules_.unknown;
    unknown = false;
  };
  for (std::size_t at = 0, length; at < piece.size(); at += length) {
    length = rules_.characters ? character_at(piece, at).length : 1;
    const std::string_view symbol = piece.substr(at, length);
    const auto of = [&](const std::vector<std::int32_t>& table, std::size_t i) { return table[static_cast<unsigned char>(symbol[i])]; };
    const std::int32_t id = length == 1 ? of(of_byte_, 0) : id_of(symbol);
    if (id != none) {
      write_unknown();
      symbols[count++] = id;
      continue;
    }
    std::size_t bytes = 0;
    while (bytes < length && of(fallback_, bytes) != none) ++bytes;
    if (bytes == length) {  // an unknown symbol from before stays behind them, as in the tokenizers package
      for (std::size_t i = 0; i < length; ++i) symbols[count++] = of(fallback_, i);
    } else if (rules_.unknown != none) {
      if (!rules_.fuse_unknown) write_unknown();
      unknown = true;
    }
  }
  write_unknown();
  return count;
}

void BytePairEncoder::merge(std::string_view piece, std::vector<std::int32_t>& ids) const {
  std::array<std::int32_t, short_piece> few;
  std::vector<std::int32_t> many(piece.size() < short_piece ? 0 : piece.size());
  std::int32_t* const symbols = many.empty() ? few.data() : many.data();
  const auto merge_all = [&](std::size_t count, auto first_rank) {
    if (many.empty()) merge_short({symbols, count}, first_rank, ids);
    else merge_long({symbols, count}, first_rank, ids);
  };
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(piece[i]); };
  if (!of_two_.empty()) {
    for (std::size_t i = 0; i < piece.size(); ++i) symbols[i] = of_byte_[byte(i)];
    merge_all(piece.size(), [&](std::size_t i) { return of_two_[256u * byte(i) + byte(i + 1)]; });
  } else {
    merge_all(write_symbols(piece, symbols), [&](std::size_t i) { return rank_of(symbols[i], symbols[i + 1]); });
  }
}

/// `first_rank(i)`: the rank of symbols i and i + 1, before any merge.
template <typename FirstRank>
void BytePairEncoder::merge_short(std::span<const std::int32_t> symbols, FirstRank first_rank, std::vector<std::int32_t>& ids) const {
  struct Part {
    std::int32_t id;
    Rank rank;  ///< of this part and the next
  };
  std::array<Part, short_piece> parts;
  std::size_t count = symbols.size();
  for (std::size_t i = 0; i < count; ++i) parts[i] = {symbols[i], i + 1 < count ? first_rank(i) : never};

  while (count > 0) {
    std::size_t best = 0;
    for (std::size_t i = 1; i < count; ++i) {
      if (parts[i].rank < parts[best].rank) best = i;
    }
    const Rank rank = parts[best].rank;
    if (rank == never) break;
    parts[best].id = merged_.empty() ? static_cast<std::int32_t>(rank) : merged_[rank];
    std::copy(parts.begin() + best + 2, parts.begin() + count, parts.begin() + best + 1);
    --count;
    parts[best].rank = best + 1 < count ? rank_of(parts[best].id, parts[best + 1].id) : never;
    if (best > 0) parts[best - 1].rank = rank_of(parts[best - 1].id, parts[best].id);
  }
  for (std::size_t i = 0; i < count; ++i) ids.push_back(parts[i].id);
}

template <typename FirstRank>
void BytePairEncoder::merge_long(std::span<const std::int32_t> symbols, FirstRank first_rank, std::vector<std::int32_t>& ids) const {
  /// The part that begins at this symbol, if one does.
  struct Part {
    std::uint32_t previous;  ///< where the part before begins
    std::uint32_t end;       ///< where the part after begins
    std::int32_t id;
    Rank rank;  ///< of this part and the next
  };
  const auto size = static_cast<std::uint32_t>(symbols.size());
  std::vector<Part> parts(size);
  // Ordered by rank, then by place. A merge that has become impossible stays in the heap: its part's `rank` differs by then.
  std::vector<std::uint64_t> candidates;
  candidates.reserve(size);
  const auto key = [](Rank rank, std::uint32_t start) { return std::uint64_t{rank} << 32 | start; };
  for (std::uint32_t i = 0; i < size; ++i) {
    const Rank rank = i + 1 < size ? first_rank(i) : never;
    parts[i] = {i - 1, i + 1, symbols[i], rank};
    if (rank != never) candidates.push_back(key(rank, i));
  }
  std::priority_queue heap(std::greater<>(), std::move(candidates));

  const auto update = [&](std::uint32_t start) {
    const std::uint32_t next = parts[start].end;
    const Rank rank = next < size ? rank_of(parts[start].id, parts[next].id) : never;
    parts[start].rank = rank;
    if (rank != never) heap.push(key(rank, start));
  };
  while (!heap.empty()) {
    const auto start = static_cast<std::uint32_t>(heap.top());
    const auto rank = static_cast<Rank>(heap.top() >> 32);
    heap.pop();
    if (parts[start].rank != rank) continue;
    Part& right = parts[parts[start].end];
    right.rank = never;
    parts[start].id = merged_.empty() ? static_cast<std::int32_t>(rank) : merged_[rank];
    parts[start].end = right.end;
    if (right.end < size) parts[right.end].previous = start;
    update(start);
    if (start > 0) update(parts[start].previous);
  }
  for (std::uint32_t i = 0; i < size; i = parts[i].end) ids.push_back(parts[i].id);
}

}  // namespace kvmesh
