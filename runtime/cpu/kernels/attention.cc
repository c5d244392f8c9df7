// Attention of a group of query heads over one key head, by blocks of keys with a running maximum and sum.
// Source: Dao et al., "FlashAttention" (2022), online softmax after Milakov and Gimelshein (2018).
// Blocks are counted from the row's first key, and a query skips what it may not see, so its arithmetic is the same in
// whatever company it comes: alone (decode) or with the rest of its prompt.
#include "runtime/cpu/kernels/amx.h"
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t block = 64;  // keys
constexpr int block_vectors = block / lanes;
static_assert(block % panel == 0);

/// Scratch memory of a task of `rows` = tokens · group queries, all 64-byte aligned. Rows of query and score are rounded up to whole tiles of 16.
struct Scratch {
  std::int64_t width;   // head_dim rounded up to 32
  std::int64_t words;   // of 32 bits in a key at most, rounded up to 16
  std::int64_t rows;
  float* query;         // [rows, width] float32, or words of bfloat16 pairs; by tiles: [rows / 16, spans][16][16] such words
  std::uint32_t* k;     // [block / panel, words, panel] keys, transposed
  float* v;             // [block, width]; by tiles: [block / 2, width] words of the values of two keys
  float* score;         // [rows, block]
  std::uint32_t* weight;  // by tiles: [rows / 16][upper halves, lower halves][block / 32][16][16] words of bfloat16 pairs
  float* out;           // [rows, width]
  float* sum;           // [rows, lanes]
  float* largest;       // [rows]
  float* decay;         // [rows]
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

class Attention {
 public:
  Attention(const AttentionTask& task, void* scratch)
      : t_(task),
        s_(task.head_dim, task.tokens * task.group, scratch),
        words_(task.bf16 ? task.head_dim / 2 : task.head_dim),
        values_in_place_(!(task.bf16 && by_tiles) && s_.rows <= max_rows && task.head_dim % lanes == 0) {}

  void run() {
    read_queries();
    const std::int64_t first = t_.position - t_.start, keys = first + t_.tokens;
    const std::int64_t oldest = t_.window >= 0 && first > t_.window ? first - t_.window : 0;
    for (std::int64_t b = oldest / block; b * block < keys; ++b) {
      const std::int64_t count = keys - b * block < block ? keys - b * block : block;
      slot_ = (t_.start + b * block) % t_.size;
      read_keys(count);
      if (!values_in_place_) read_values(count);
      products();
      scores(b * block);
      weigh(b * block);
    }
    write_out();
#if defined(__AMX_BF16__)
    if (t_.bf16) tiles_.release();
#endif
  }

 private:
  const AttentionTask& t_;
  const Scratch s_;
  const std::int64_t words_;  // of 32 bits in a key
  const bool values_in_place_;
  std::int64_t slot_ = 0;  // of the block's first key
#if defined(__AMX_BF16__)
  Tiles tiles_;
#endif

  std::int64_t element() const { return t_.bf16 ? 2 : 4; }

  /// What the query of row r sees of the block that begins at key `at`; begin ≥ end: nothing.
  Range seen(std::int64_t r, std::int64_t at) const {
    const std::int64_t key = t_.position - t_.start + r / t_.group;
    Range range{0, key - at + 1 < block ? key - at + 1 : block};
    if (t_.window >= 0 && key - t_.window > at) range.begin = key - t_.window - at;
    return range;
  }

  void read_queries() const {
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      const std::int64_t at = r / t_.group * t_.stride + r % t_.group * t_.head_dim;
      float* to = s_.query + r * s_.width;
      if (t_.bf16 && by_tiles) {
        read_query_tiles(r, static_cast<const std::uint16_t*>(t_.q) + at);
      } else if (t_.bf16 && !left_is_widened) {
        __builtin_memcpy(to, static_cast<const std::uint16_t*>(t_.q) + at, static_cast<std::size_t>(t_.head_dim) * 2);
      } else {
        read_floats(t_.q, t_.bf16, at, t_.head_dim, to);
      }
      for (std::int64_t i = 0; i < s_.width; ++i) s_.out[r * s_.width + i] = 0;
      for (std::int64_t i = 0; i < lanes; ++i) s_.sum[r * lanes + i] = 0;
      s_.largest[r] = -__builtin_inff();
    }
    if (!t_.bf16 || !by_tiles) return;
    for (std::int64_t w = words_; w < s_.words; ++w) {  // meet the queries' zeros
      for (std::int64_t p = 0; p < block / panel; ++p) __builtin_memset(s_.k + (p * s_.words + w) * panel, 0, static_cast<std::size_t>(panel) * 4);
    }
  }

  /// Key j of the block in a ring.
  const char* slot(const void* ring, std::int64_t j) const {
    const std::int64_t i = slot_ + j;
    return static_cast<const char*>(ring) + (i < t_.size ? i : i - t_.size) * t_.head_dim * element();
  }

  /// The block's keys [count][words] → [words][keys] by panels; the rest of the block becomes zeros.
  void read_keys(std::int64_t count) const {
    for (std::int64_t j = 0; j < block; j += lanes) {
      std::uint32_t* to = s_.k + j / panel * s_.words * panel + j % panel;
      const std::int64_t keys = count - j < lanes ? count - j : lanes;
      const char* from[lanes];
      for (std::int64_t i = 0; i < keys; ++i) from[i] = slot(t_.k, j + i);
      std::int64_t w = 0;
      for (; w + lanes <= words_; w += lanes) {
        Words x[lanes] = {};
        for (std::int64_t i = 0; i < keys; ++i) x[i] = load<Words>(from[i] + 4 * w);
        transpose(x);
        for (std::int64_t i = 0; i < lanes; ++i) store(to + (w + i) * panel, x[i]);
      }
      for (; w < words_; ++w) {
        for (std::int64_t i = 0; i < lanes; ++i) to[w * panel + i] = i < keys ? load<std::uint32_t>(from[i] + 4 * w) : 0;
      }
    }
  }

  void read_values(std::int64_t count) const {
    if (t_.bf16 && by_tiles) return read_value_pairs(count);
    for (std::int64_t j = 0; j < count; ++j) {
      float* to = s_.v + j * s_.width;
      read_floats(slot(t_.v, j), t_.bf16, 0, t_.head_dim, to);
      for (std::int64_t i = t_.head_dim; i < s_.width; ++i) to[i] = 0;
    }
  }

  /// score = query · keys.
  void products() {
    if (t_.bf16 && by_tiles) {
      tile_products();
    } else if (t_.bf16) {
      vector_products<Bf16>();
    } else {
      vector_products<F32>();
    }
  }

  template <typename Kind>
  void vector_products() const {
    for (std::int64_t p = 0; p < block / panel; ++p) {
      const auto* b = reinterpret_cast<const typename Kind::Right*>(s_.k) + p * s_.words * panel;
      for (std::int64_t r = 0; r < s_.rows; r += max_rows) {
        const std::int64_t left = s_.rows - r;
        with_constant<max_rows>(static_cast<int>(left < max_rows ? left : max_rows), [&](auto height) {
          Floats acc[height.value][max_vectors] = {};
          multiply<Kind, height.value, max_vectors>(reinterpret_cast<const typename Kind::Left*>(s_.query + r * s_.width), s_.width, b, panel, words_, {},
                                                    acc);
          for (int m = 0; m < height.value; ++m) {
            for (int v = 0; v < max_vectors; ++v) store(s_.score + (r + m) * block + p * panel + v * lanes, acc[m][v]);
          }
        });
      }
    }
  }

  /// Scores of the block at key `at` become weights relative to the largest score so far; keeps maxima and sums.
  void scores(std::int64_t at) const {
    const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(static_cast<float>(t_.head_dim))));
    const Floats none = splat(-__builtin_inff());
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      const Range range = seen(r, at);
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
        s_.decay[r] = exp(splat(before - after))[0];
        store(s_.sum + r * lanes, fma(load<Floats>(s_.sum + r * lanes), splat(s_.decay[r]), sum));
      }
      if (t_.bf16 && by_tiles) {
        write_weights(r, x);
      } else {
        for (int v = 0; v < block_vectors; ++v) store(s_.score + r * block + v * lanes, x[v]);
      }
    }
  }

  /// out = out · decay + Σ weight · value, over the keys that each query sees, in their order.
  void weigh(std::int64_t at) {
    if (t_.bf16 && by_tiles) return weigh_tiles(at);
    for (std::int64_t r = 0; r < s_.rows;) {
      const Range range = seen(r, at);
      int rows = 1;
      while (rows < max_rows && r + rows < s_.rows && seen(r + rows, at) == range) ++rows;
      if (range.begin < range.end) {
        with_constant<max_rows>(rows, [&](auto height) {
          std::int64_t i = 0;
          for (; i + max_vectors * lanes <= s_.width; i += max_vectors * lanes) weigh_columns<height.value, max_vectors>(r, i, range);
          if (i < s_.width) {
            with_constant<max_vectors>(static_cast<int>((s_.width - i) / lanes),
                                       [&](auto vectors) { weigh_columns<height.value, vectors.value>(r, i, range); });
          }
        });
      }
      r += rows;
    }
  }

  template <int height, int vectors>
  KVMESH_INLINE void weigh_columns(std::int64_t r, std::int64_t i, Range range) const {
    Floats acc[height][vectors];
    for (int m = 0; m < height; ++m) {
      const Floats decay = splat(s_.decay[r + m]);
      for (int v = 0; v < vectors; ++v) acc[m][v] = load<Floats>(s_.out + (r + m) * s_.width + i + v * lanes) * decay;
    }
    const float* weight = s_.score + r * block;
    if (!values_in_place_) {
      multiply<F32, height, vectors>(weight + range.begin, block, s_.v + range.begin * s_.width + i, s_.width, range.end - range.begin, {}, acc);
    } else if (t_.bf16) {
      weigh_in_place<height, vectors>(weight, i, range, acc, [](const char* p) { return widen(load<Halves>(p)); });
    } else {
      weigh_in_place<height, vectors>(weight, i, range, acc, [](const char* p) { return load<Floats>(p); });
    }
    for (int m = 0; m < height; ++m) {
      for (int v = 0; v < vectors; ++v) store(s_.out + (r + m) * s_.width + i + v * lanes, acc[m][v]);
    }
  }

  /// The same with values where the cache has them: a copy would not pay for few queries.
  template <int height, int vectors, typename Load>
  KVMESH_INLINE void weigh_in_place(const float* weight, std::int64_t i, Range range, Floats (&acc)[height][vectors], const Load& load_values) const {
    const std::int64_t columns = t_.head_dim - i;
    for (std::int64_t j = range.begin; j < range.end; ++j) {
      const char* from = slot(t_.v, j) + i * element();
      for (int v = 0; v < vectors; ++v) {
        if (v * lanes >= columns) break;
        const Floats value = load_values(from + v * lanes * element());
        for (int m = 0; m < height; ++m) acc[m][v] = fma(splat(weight[m * block + j]), value, acc[m][v]);
      }
    }
  }

  void write_out() const {
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      float* out = s_.out + r * s_.width;
      const float sum = sum_lanes(load<Floats>(s_.sum + r * lanes));
      for (std::int64_t i = 0; i < s_.width; i += lanes) store(out + i, load<Floats>(out + i) / sum);
      write_floats(out, t_.head_dim, t_.out, t_.bf16, r / t_.group * t_.stride + r % t_.group * t_.head_dim);
    }
  }

#if defined(__AMX_BF16__)
  std::int64_t spans() const { return (words_ + span_words - 1) / span_words; }

  void read_query_tiles(std::int64_t r, const std::uint16_t* from) const {
    std::uint32_t* to = reinterpret_cast<std::uint32_t*>(s_.query) + r / tile_height * spans() * tile_words + r % tile_height * span_words;
    for (std::int64_t s = 0; s < spans(); ++s, from += 32, to += tile_words) {
      const std::int64_t left = t_.head_dim - 32 * s;
      store(to, Words{});
      __builtin_memcpy(to, from, static_cast<std::size_t>(left < 32 ? left : 32) * 2);
    }
  }

  /// Two keys' values interleaved; zeros for keys that are not there.
  void read_value_pairs(std::int64_t count) const {
    for (std::int64_t j = 0; j < block; j += 2) {
      std::uint32_t* to = reinterpret_cast<std::uint32_t*>(s_.v) + j / 2 * s_.width;
      const char *even = slot(t_.v, j), *odd = slot(t_.v, j + 1);
      std::int64_t i = 0;
      for (; i + lanes <= t_.head_dim; i += lanes) {
        const Words low = j < count ? __builtin_convertvector(load<Halves>(even + 2 * i), Words) : Words{};
        const Words high = j + 1 < count ? __builtin_convertvector(load<Halves>(odd + 2 * i), Words) : Words{};
        store(to + i, low | high << 16);
      }
      for (; i < s_.width; ++i) {
        const bool real = i < t_.head_dim;
        to[i] = (real && j < count ? load<std::uint16_t>(even + 2 * i) : 0u) | (real && j + 1 < count ? load<std::uint16_t>(odd + 2 * i) : 0u) << 16;
      }
    }
  }

  /// f(first row, rows) for the pairs of tiles that see something of the block at key `at`.
  template <typename F>
  KVMESH_INLINE void each_tile_pair(std::int64_t at, const F& f) {
    for (std::int64_t r = 0; r < s_.rows; r += 2 * tile_height) {
      const std::int64_t left = s_.rows - r, rows = left < 2 * tile_height ? left : 2 * tile_height;
      const Range last = seen(r + rows - 1, at);
      if (last.end > 0) f(r, rows);
    }
  }

  void tile_products() {
    for (std::int64_t r = 0; r < s_.rows; r += 2 * tile_height) {
      const std::int64_t left = s_.rows - r, rows = left < 2 * tile_height ? left : 2 * tile_height;
      TileTask task{.x = reinterpret_cast<const std::uint32_t*>(s_.query) + r / tile_height * spans() * tile_words,
                    .below = spans() * tile_words,
                    .w = s_.k,
                    .w_row = panel * 4,
                    .spans = spans(),
                    .rounds = 1,
                    .sums = s_.score + r * block,
                    .sums_row = block * 4,
                    .more = false,
                    .prefetch = {}};
      if (rows <= tile_height) {
        tiles_.shape(rows, 0);
        multiply_upper<4>(task);
      } else {
        tiles_.shape(tile_height, rows - tile_height);
        multiply_pair<2>(task);
        task.w += 32;
        task.sums += 32;
        multiply_pair<2>(task);
      }
    }
  }

  /// Each weight as two bfloat16, the second being what the first leaves over: 16 of its bits.
  void write_weights(std::int64_t r, const Floats (&x)[block_vectors]) const {
    constexpr std::int64_t halves = block / 32 * tile_words;
    std::uint32_t* to = s_.weight + r / tile_height * 2 * halves + r % tile_height * span_words;
    for (int v = 0; v < block_vectors; ++v) {
      const Halves upper = (Halves)_mm512_cvtneps_pbh((__m512)x[v]);
      std::uint32_t* at = to + v / 2 * tile_words + v % 2 * (span_words / 2);
      store(at, upper);
      store(at + halves, (Halves)_mm512_cvtneps_pbh((__m512)(x[v] - widen(upper))));
    }
  }

  void weigh_tiles(std::int64_t at) {
    constexpr std::int64_t halves = block / 32 * tile_words;
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      if (s_.decay[r] == 1) continue;
      float* out = s_.out + r * s_.width;
      for (std::int64_t i = 0; i < s_.width; i += lanes) store(out + i, load<Floats>(out + i) * s_.decay[r]);
    }
    each_tile_pair(at, [&](std::int64_t r, std::int64_t rows) {
      if (rows <= tile_height) {
        tiles_.shape(rows, 0);
      } else {
        tiles_.shape(tile_height, rows - tile_height);
      }
      for (std::int64_t i = 0; i < s_.width; i += 32) {
        const TileTask task{.x = s_.weight + r / tile_height * 2 * halves,
                            .below = 2 * halves,
                            .w = reinterpret_cast<const std::uint32_t*>(s_.v) + i,
                            .w_row = s_.width * 4,
                            .spans = block / 32,
                            .rounds = 2,
                            .sums = s_.out + r * s_.width + i,
                            .sums_row = s_.width * 4,
                            .more = true,
                            .prefetch = {}};
        if (rows <= tile_height) {
          multiply_upper<2>(task);
        } else {
          multiply_pair<2>(task);
        }
      }
    });
  }
#else
  void read_query_tiles(std::int64_t, const std::uint16_t*) const {}
  void read_value_pairs(std::int64_t) const {}
  void tile_products() const {}
  void write_weights(std::int64_t, const Floats (&)[block_vectors]) const {}
  void weigh_tiles(std::int64_t) const {}
#endif
};

}  // namespace

std::size_t attention_scratch(std::int64_t head_dim, std::int64_t rows) { return Scratch(head_dim, rows, nullptr).bytes; }

void attention(const AttentionTask& task, void* scratch) { Attention(task, scratch).run(); }

}  // namespace kvmesh::cpu::KVMESH_ISA
