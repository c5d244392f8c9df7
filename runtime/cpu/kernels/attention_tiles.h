// Attention over bfloat16 by AMX's tiles. A softmax weight enters the product with the values as two bfloat16, the second being what the first leaves
// over: 16 of its bits.
#pragma once

#include "runtime/cpu/kernels/amx.h"
#include "runtime/cpu/kernels/attention.h"

#if defined(__AMX_BF16__)
namespace kvmesh::cpu::KVMESH_ISA {
namespace {

class TileAttention : public AttentionBlock {
 public:
  TileAttention(const AttentionTask& task, void* scratch)
      : AttentionBlock(task, scratch), spans_(round_up(words_, span_words) / span_words), turned_(s_.rows <= tile_height && task.head_dim % 32 == 0) {
    const std::int64_t tiles = round_up(s_.rows, tile_height) / tile_height * spans_;
    __builtin_memset(query(), 0, static_cast<std::size_t>(tiles * tile_words) * 4);
    for (std::int64_t r = 0; r < s_.rows; ++r) read_query(r, static_cast<const std::uint16_t*>(t_.q) + query_at(r));
    if (!turned_) __builtin_memset(s_.k + words_ * panel, 0, static_cast<std::size_t>((spans_ * span_words - words_) * panel) * 4);  // meet zeros
  }

  void step() {
    if (turned_) {
      turned_products();
    } else {
      transpose_keys();
      products();
    }
    const bool finite = read_values({0, count_});
    prefetch(4);
    soften([&](std::int64_t r, const Floats(&x)[block_vectors]) { write_weights(r, x); });
    fade();
    if (finite) {
      weigh();
    } else {
      weigh_one_by_one();
    }
  }

  void finish() {
    write_out();
    tiles_.release();
  }

 private:
  const std::int64_t spans_;  // of a key
  const bool turned_;         // few queries: keys meet them where the cache has them
  Tiles tiles_;

  static constexpr std::int64_t value_spans = block / 32, half_words = value_spans * tile_words;
  static constexpr int row_of_tile = 64;  // bytes

  std::uint32_t* query() const { return reinterpret_cast<std::uint32_t*>(s_.query); }

  /// Into [rows / 16][spans][16][16] words or, turned, [spans][16][16 queries].
  void read_query(std::int64_t r, const std::uint16_t* from) const {
    if (turned_) {
      for (std::int64_t w = 0; w < words_; ++w) query()[w * tile_height + r] = load<std::uint32_t>(from + 2 * w);
      return;
    }
    std::uint32_t* to = query() + (r / tile_height * spans_ * tile_height + r % tile_height) * span_words;
    for (std::int64_t w = 0; w < words_; ++w) to[w / span_words * tile_words + w % span_words] = load<std::uint32_t>(from + 2 * w);
  }

  /// f(first row, rows) for pairs of tiles.
  template <typename F>
  KVMESH_INLINE void each_pair(const F& f) {
    for (std::int64_t r = 0; r < s_.rows; r += 2 * tile_height) {
      const std::int64_t left = s_.rows - r, rows = left < 2 * tile_height ? left : 2 * tile_height;
      f(r, rows);
    }
  }

  /// `columns` tiles of columns of one or two tiles of rows.
  template <int columns>
  KVMESH_INLINE void multiply_rows(const TileTask& task, std::int64_t rows) {
    if (rows <= tile_height) {
      tiles_.shape(rows, 0);
      multiply_upper<columns>(task);
    } else {
      tiles_.shape(tile_height, rows - tile_height);
      multiply_pair<columns>(task);
    }
  }

  void products() {
    each_pair([&](std::int64_t r, std::int64_t rows) {
      for (std::int64_t j = 0; j < block; j += 32) {
        multiply_rows<2>({.x = query() + r / tile_height * spans_ * tile_words,
                          .x_row = row_of_tile,
                          .x_step = tile_words,
                          .below = spans_ * tile_words,
                          .w = s_.k + j,
                          .w_row = panel * 4,
                          .spans = spans_,
                          .rounds = 1,
                          .sums = s_.score + r * block + j,
                          .sums_row = block * 4,
                          .more = false,
                          .prefetch = {}},
                         rows);
      }
    });
  }

  /// keys · queries, turned afterwards: the same products in the same order, so the same bits. Keys that are not there give scores that nobody sees.
  void turned_products() {
    const char* keys[4];
    char* copy = reinterpret_cast<char*>(s_.k);
    for (int g = 0; g < 4; ++g, copy += tile_height * row_bytes()) {
      const std::int64_t j = g * tile_height;
      if (j < count_ && (slot_ + j) % t_.size + tile_height <= t_.size) {
        keys[g] = slot(t_.k, j);
        continue;
      }
      for (std::int64_t i = 0; i < tile_height && j + i < count_; ++i) {  // around the ring's end
        __builtin_memcpy(copy + i * row_bytes(), slot(t_.k, j + i), static_cast<std::size_t>(row_bytes()));
      }
      keys[g] = copy;
    }
    float* sums = s_.v;  // [block, 16]
    tiles_.shape(tile_height, 0);
    written(s_.query);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t s = 0; s < spans_; ++s) {
      prefetch(8);
      _tile_loadd(6, query() + s * tile_words, row_of_tile);
      _tile_loadd(4, keys[0] + row_of_tile * s, row_bytes());
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, keys[1] + row_of_tile * s, row_bytes());
      _tile_dpbf16ps(1, 5, 6);
      _tile_loadd(7, keys[2] + row_of_tile * s, row_bytes());
      _tile_dpbf16ps(2, 7, 6);
      _tile_loadd(4, keys[3] + row_of_tile * s, row_bytes());
      _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, sums, row_of_tile);
    _tile_stored(1, sums + tile_words, row_of_tile);
    _tile_stored(2, sums + 2 * tile_words, row_of_tile);
    _tile_stored(3, sums + 3 * tile_words, row_of_tile);
    const __m512i rows = (__m512i)(iota() * 16);
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      for (std::int64_t g = 0; g < 4; ++g) {
        store(s_.score + r * block + g * 16, (Floats)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, rows, sums + g * tile_words + r, 4));
      }
    }
  }

  /// Two keys' values interleaved, [block / 2, width] words; zeros for keys that are not in `range`. Whether all are finite.
  bool read_values(Range range) {
    Ints infinite = {};
    const auto look = [&](Words x) { infinite |= (x & 0x7f80u) == 0x7f80u; };
    for (std::int64_t j = 0; j < block; j += 2) {
      std::uint32_t* to = reinterpret_cast<std::uint32_t*>(s_.v) + j / 2 * s_.width;
      const char *even = slot(t_.v, j), *odd = slot(t_.v, j + 1);
      const bool has_even = range.begin <= j && j < range.end, has_odd = range.begin <= j + 1 && j + 1 < range.end;
      prefetch(64);
      std::int64_t i = 0;
      for (; i + lanes <= t_.head_dim; i += lanes) {
        const Words low = has_even ? widen_words(load<Halves>(even + 2 * i)) : Words{}, high = has_odd ? widen_words(load<Halves>(odd + 2 * i)) : Words{};
        look(low);
        look(high);
        store(to + i, low | high << 16);
      }
      for (; i < s_.width; ++i) {
        const bool real = i < t_.head_dim;
        const std::uint32_t low = real && has_even ? load<std::uint16_t>(even + 2 * i) : 0u, high = real && has_odd ? load<std::uint16_t>(odd + 2 * i) : 0u;
        look(splat_word(low));
        look(splat_word(high));
        to[i] = low | high << 16;
      }
    }
    for (int i = 0; i < lanes; ++i) {
      if (infinite[i]) return false;
    }
    return true;
  }

  /// Into [rows / 16][upper halves, lower halves][value_spans][16][16] words.
  void write_weights(std::int64_t r, const Floats (&x)[block_vectors]) const {
    std::uint32_t* to = s_.weight + r / tile_height * 2 * half_words + r % tile_height * span_words;
    for (int v = 0; v < block_vectors; ++v) {
      const Halves upper = (Halves)_mm512_cvtneps_pbh((__m512)x[v]);
      std::uint32_t* at = to + v / 2 * tile_words + v % 2 * (span_words / 2);
      store(at, upper);
      store(at + half_words, (Halves)_mm512_cvtneps_pbh((__m512)(x[v] - widen(upper))));
    }
  }

  /// out = out · decay.
  void fade() const {
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      if (s_.decay[r] == 1) continue;
      float* out = s_.out + r * s_.width;
      for (std::int64_t i = 0; i < s_.width; i += lanes) store(out + i, load<Floats>(out + i) * s_.decay[r]);
    }
  }

  /// out = out + Σ weight · value.
  void weigh() {
    each_pair([&](std::int64_t r, std::int64_t rows) {
      if (seen(r + rows - 1).end <= 0) return;
      for (std::int64_t i = 0; i < s_.width; i += 32) {
        multiply_rows<2>({.x = s_.weight + r / tile_height * 2 * half_words,
                          .x_row = row_of_tile,
                          .x_step = tile_words,
                          .below = 2 * half_words,
                          .w = reinterpret_cast<const std::uint32_t*>(s_.v) + i,
                          .w_row = s_.width * 4,
                          .spans = value_spans,
                          .rounds = 2,
                          .sums = s_.out + r * s_.width + i,
                          .sums_row = s_.width * 4,
                          .more = true,
                          .prefetch = {}},
                         rows);
      }
    });
  }

  /// The same where some value is infinite or not a number: a weight of zero would not keep it from queries that do not see it.
  void weigh_one_by_one() {
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      const Range range = seen(r);
      if (range.begin >= range.end) continue;
      read_values(range);
      tiles_.shape(1, 0);
      for (std::int64_t i = 0; i < s_.width; i += 32) {
        multiply_upper<2>({.x = s_.weight + r / tile_height * 2 * half_words + r % tile_height * span_words,
                           .x_row = row_of_tile,
                           .x_step = tile_words,
                           .below = 0,
                           .w = reinterpret_cast<const std::uint32_t*>(s_.v) + i,
                           .w_row = s_.width * 4,
                           .spans = value_spans,
                           .rounds = 2,
                           .sums = s_.out + r * s_.width + i,
                           .sums_row = s_.width * 4,
                           .more = true,
                           .prefetch = {}});
      }
    }
  }
};

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
#endif
