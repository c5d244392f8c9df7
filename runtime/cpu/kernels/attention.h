// What all ways of attention share: a task's scratch memory, a block of the ring, and the softmax over a block's scores.
// Source: Dao et al., "FlashAttention" (2022), online softmax after Milakov and Gimelshein (2018).
// Blocks are counted from the row's first key, and a query skips what it may not see, so its arithmetic is the same in whatever company it comes:
// alone (decode) or with the rest of its prompt.
#pragma once

#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t block = 64;  // keys
constexpr int block_vectors = block / lanes;
static_assert(block % panel == 0);

/// Scratch memory of a task of `rows` = tokens · group queries, all 64-byte aligned; there is room for rows up to whole tiles of 16.
struct Scratch {
  std::int64_t width;     // head_dim rounded up to 32
  std::int64_t words;     // of 32 bits in a key at most, rounded up to 16
  std::int64_t rows;
  float* query;           // [rows, width] float32, or words of bfloat16 pairs
  std::uint32_t* k;       // [block / panel, words, panel] keys, transposed
  float* v;               // [block, width]
  float* score;           // [rows, block]
  std::uint32_t* weight;  // [rows, block] words, for tiles
  float* out;             // [rows, width]
  float* sum;             // [rows, lanes]
  float* largest;         // [rows]
  float* decay;           // [rows]
  std::size_t bytes;

  Scratch(std::int64_t head_dim, std::int64_t row_count, void* memory) : width(round_up(head_dim, 32)), words(round_up(head_dim, 16)), rows(row_count) {
    char* next = static_cast<char*>(memory);
    const std::int64_t whole = round_up(rows, 16);
    const auto take = [&](std::int64_t floats) {
      char* p = next;
      next += round_up(floats, 16) * 4;
      return p;
    };
    query = reinterpret_cast<float*>(take(whole * width));
    k = reinterpret_cast<std::uint32_t*>(take(block * words));
    v = reinterpret_cast<float*>(take(block * width));
    score = reinterpret_cast<float*>(take(whole * block));
    weight = reinterpret_cast<std::uint32_t*>(take(whole * block));
    out = reinterpret_cast<float*>(take(whole * width));
    sum = reinterpret_cast<float*>(take(rows * lanes));
    largest = reinterpret_cast<float*>(take(rows));
    decay = reinterpret_cast<float*>(take(rows));
    bytes = static_cast<std::size_t>(next - static_cast<char*>(memory));
  }
};

/// The keys that a query sees within a block: [begin, end) of 0 … block.
struct Range {
  std::int64_t begin, end;
  bool operator==(const Range& o) const { return begin == o.begin && end == o.end; }
};

/// A task and the block of its row's keys that is at hand.
class AttentionBlock {
 public:
  AttentionBlock(const AttentionTask& task, void* scratch)
      : t_(task), s_(task.head_dim, task.tokens * task.group, scratch), words_(task.bf16 ? task.head_dim / 2 : task.head_dim) {
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      for (std::int64_t i = 0; i < s_.width; i += lanes) store(s_.out + r * s_.width + i, Floats{});
      store(s_.sum + r * lanes, Floats{});
      s_.largest[r] = -__builtin_inff();
    }
  }

  /// Keys that the task's last query sees, and the first of them that its first query sees.
  std::int64_t keys() const { return t_.position - t_.start + t_.tokens; }
  std::int64_t oldest() const {
    const std::int64_t first = t_.position - t_.start;
    return t_.window >= 0 && first > t_.window ? first - t_.window : 0;
  }

  /// Goes to the block at key `at`.
  void go_to(std::int64_t at) {
    at_ = at;
    count_ = keys() - at < block ? keys() - at : block;
    slot_ = (t_.start + at) % t_.size;
    const bool more = at + block < keys() && slot_ + 2 * block <= t_.size;
    next_ = 0;
    next_end_ = more ? block * row_bytes() : 0;
  }

  void write_out() const {
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      float* out = s_.out + r * s_.width;
      const float sum = sum_lanes(load<Floats>(s_.sum + r * lanes));
      for (std::int64_t i = 0; i < s_.width; i += lanes) store(out + i, load<Floats>(out + i) / sum);
      write_floats(out, t_.head_dim, t_.out, t_.bf16, r / t_.group * t_.stride + r % t_.group * t_.head_dim);
    }
  }

 protected:
  const AttentionTask& t_;
  const Scratch s_;
  const std::int64_t words_;                   // of 32 bits in a key
  std::int64_t at_ = 0, count_ = 0, slot_ = 0;  // the block's first key, how many there are of it, and where in the ring it begins

  std::int64_t element() const { return t_.bf16 ? 2 : 4; }
  std::int64_t row_bytes() const { return t_.head_dim * element(); }

  /// Key j of the block in a ring.
  const char* slot(const void* ring, std::int64_t j) const {
    const std::int64_t i = slot_ + j;
    return static_cast<const char*>(ring) + (i < t_.size ? i : i - t_.size) * row_bytes();
  }

  /// Query r: element of t_.q and t_.out.
  std::int64_t query_at(std::int64_t r) const { return r / t_.group * t_.stride + r % t_.group * t_.head_dim; }

  /// What query r sees of the block; begin ≥ end: nothing.
  Range seen(std::int64_t r) const {
    const std::int64_t key = t_.position - t_.start + r / t_.group;
    Range range{0, key - at_ + 1 < block ? key - at_ + 1 : block};
    if (t_.window >= 0 && key - t_.window > at_) range.begin = key - t_.window - at_;
    return range;
  }

  /// Asks the caches for 1 / `shares` of the next block's keys and values: spread over the work on this block, so that memory is read all the time.
  KVMESH_INLINE void prefetch(std::int64_t shares) {
    const std::int64_t share = round_up(block * row_bytes() / shares, 64), until = next_ + share < next_end_ ? next_ + share : next_end_;
    for (; next_ < until; next_ += 64) {
      __builtin_prefetch(slot(t_.k, block) + next_, 0, 2);
      __builtin_prefetch(slot(t_.v, block) + next_, 0, 2);
    }
  }

  /// The block's keys [count_][words] → [words][keys] by panels; the rest of the block becomes zeros.
  void transpose_keys() {
    for (std::int64_t j = 0; j < block; j += lanes) {
      std::uint32_t* to = s_.k + j / panel * s_.words * panel + j % panel;
      const std::int64_t keys = count_ - j < lanes ? count_ - j : lanes;
      const char* from[lanes];
      for (std::int64_t i = 0; i < keys; ++i) from[i] = slot(t_.k, j + i);
      std::int64_t w = 0;
      for (; w + lanes <= words_; w += lanes) {
        prefetch(32);
        Words x[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) x[i] = i < keys ? load<Words>(from[i] + 4 * w) : Words{};
        transpose(x);
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) store(to + (w + i) * panel, x[i]);
      }
      for (; w < words_; ++w) {
        for (std::int64_t i = 0; i < lanes; ++i) to[w * panel + i] = i < keys ? load<std::uint32_t>(from[i] + 4 * w) : 0;
      }
    }
  }

  /// Scores become weights relative to the largest score so far; keeps maxima and sums. take(r, x) gets query r's weights, zeros for what it does not see.
  template <typename Take>
  KVMESH_INLINE void soften(const Take& take) const {
    const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(static_cast<float>(t_.head_dim))));
    const Floats none = splat(-__builtin_inff());
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      const Range range = seen(r);
      Floats x[block_vectors] = {};
      s_.decay[r] = 1;
      if (range.begin < range.end) {
        Floats largest = none;
        for (int v = 0; v < block_vectors; ++v) {
          x[v] = load<Floats>(s_.score + r * block + v * lanes) * scale;
          if (range.begin > 0 || range.end < block) {
            const Ints key = iota() + v * lanes;
            x[v] = (key >= static_cast<std::int32_t>(range.begin)) & (key < static_cast<std::int32_t>(range.end)) ? x[v] : none;
          }
          largest = max(largest, x[v]);
        }
        const float before = s_.largest[r], block_largest = max_lanes(largest);
        const float after = before > block_largest ? before : block_largest;
        Floats sum = {};
        for (int v = 0; v < block_vectors; ++v) {
          x[v] = exp(x[v] - after);
          sum = sum + x[v];
        }
        s_.largest[r] = after;
        if (before < after) s_.decay[r] = exp(splat(before - after))[0];
        store(s_.sum + r * lanes, fma(load<Floats>(s_.sum + r * lanes), splat(s_.decay[r]), sum));
      }
      take(r, x);
    }
  }

 private:
  std::int64_t next_ = 0, next_end_ = 0;  // bytes of the next block that were asked for, and of it in all
};

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
