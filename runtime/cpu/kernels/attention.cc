// Attention of a group of query heads over one key head, by blocks of keys with a running maximum and sum.
// Source: Dao et al., "FlashAttention" (2022), online softmax after Milakov and Gimelshein (2018).
// Blocks are counted from the row's first key, and a query skips what it may not see, so its arithmetic is the same in
// whatever company it comes: alone (decode) or with the rest of its prompt.
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t block = 64;  // keys
constexpr int block_vectors = block / lanes;
static_assert(block % panel == 0);

/// Scratch memory of a task of `rows` = tokens · group queries, all 64-byte aligned.
struct Scratch {
  std::int64_t width;  // head_dim rounded up to whole vectors
  std::int64_t words;  // of 32 bits in a key at most
  std::int64_t rows;
  float* query;        // [rows, width] float32, or words of bfloat16 pairs
  std::uint32_t* k;    // [block / panel, words, panel] keys, transposed
  float* v;            // [block, width]
  float* score;        // [rows, block]
  float* out;          // [rows, width]
  float* sum;          // [rows, lanes]
  float* largest;      // [rows]
  float* decay;        // [rows]
  std::size_t bytes;

  Scratch(std::int64_t head_dim, std::int64_t row_count, void* memory) : width(round_up(head_dim, 16)), words(head_dim), rows(row_count) {
    char* next = static_cast<char*>(memory);
    const auto take = [&](std::int64_t floats) {
      char* p = next;
      next += round_up(floats, 16) * 4;
      return p;
    };
    query = reinterpret_cast<float*>(take(rows * width));
    k = reinterpret_cast<std::uint32_t*>(take(block * words));
    v = reinterpret_cast<float*>(take(block * width));
    score = reinterpret_cast<float*>(take(rows * block));
    out = reinterpret_cast<float*>(take(rows * width));
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
  Attention(const AttentionTask& task, void* scratch) : t_(task), s_(task.head_dim, task.tokens * task.group, scratch) {}

  void run() {
    read_queries();
    const std::int64_t first = t_.position - t_.start, keys = first + t_.tokens;
    const std::int64_t oldest = t_.window >= 0 && first > t_.window ? first - t_.window : 0;
    for (std::int64_t b = oldest / block; b * block < keys; ++b) {
      const std::int64_t count = keys - b * block < block ? keys - b * block : block;
      read_keys(b * block, count);
      read_values(b * block, count);
      scores(b * block);
      weigh(b * block);
    }
    write_out();
  }

 private:
  const AttentionTask& t_;
  const Scratch s_;

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
      if (t_.bf16 && !left_is_widened) {
        __builtin_memcpy(to, static_cast<const std::uint16_t*>(t_.q) + at, static_cast<std::size_t>(t_.head_dim) * 2);
      } else {
        read_floats(t_.q, t_.bf16, at, t_.head_dim, to);
      }
      for (std::int64_t i = 0; i < s_.width; ++i) s_.out[r * s_.width + i] = 0;
      for (std::int64_t i = 0; i < lanes; ++i) s_.sum[r * lanes + i] = 0;
      s_.largest[r] = -__builtin_inff();
    }
  }

  /// Element `key` of a ring.
  const char* slot(const void* ring, std::int64_t key) const {
    return static_cast<const char*>(ring) + (t_.start + key) % t_.size * t_.head_dim * element();
  }

  /// [keys][words] → [words][keys] by panels; keys beyond `count` are left as they are and masked later.
  void read_keys(std::int64_t at, std::int64_t count) const {
    const std::int64_t words = t_.bf16 ? t_.head_dim / 2 : t_.head_dim;
    for (std::int64_t j = 0; j < count; ++j) {
      const char* from = slot(t_.k, at + j);
      std::uint32_t* to = s_.k + j / panel * words * panel + j % panel;
      for (std::int64_t i = 0; i < words; ++i) to[i * panel] = load<std::uint32_t>(from + 4 * i);
    }
    for (std::int64_t j = count; j < block; ++j) {
      std::uint32_t* to = s_.k + j / panel * words * panel + j % panel;
      for (std::int64_t i = 0; i < words; ++i) to[i * panel] = 0;
    }
  }

  void read_values(std::int64_t at, std::int64_t count) const {
    for (std::int64_t j = 0; j < count; ++j) {
      float* to = s_.v + j * s_.width;
      read_floats(slot(t_.v, at + j), t_.bf16, 0, t_.head_dim, to);
      for (std::int64_t i = t_.head_dim; i < s_.width; ++i) to[i] = 0;
    }
  }

  template <typename Kind>
  void products() const {
    const std::int64_t words = t_.bf16 ? t_.head_dim / 2 : t_.head_dim;
    for (std::int64_t p = 0; p < block / panel; ++p) {
      const auto* b = reinterpret_cast<const typename Kind::Right*>(s_.k) + p * words * panel;
      for (std::int64_t r = 0; r < s_.rows; r += max_rows) {
        const std::int64_t left = s_.rows - r;
        with_constant<max_rows>(static_cast<int>(left < max_rows ? left : max_rows), [&](auto height) {
          Floats acc[height.value][max_vectors] = {};
          multiply<Kind, height.value, max_vectors>(reinterpret_cast<const typename Kind::Left*>(s_.query + r * s_.width), s_.width, b, panel, words, {},
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
    if (t_.bf16) {
      products<Bf16>();
    } else {
      products<F32>();
    }
    const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(static_cast<float>(t_.head_dim))));
    const Floats none = splat(-__builtin_inff());
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      const Range range = seen(r, at);
      if (range.begin >= range.end) continue;
      float* score = s_.score + r * block;
      Floats x[block_vectors], largest = none;
      for (int v = 0; v < block_vectors; ++v) {
        x[v] = load<Floats>(score + v * lanes) * scale;
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
        store(score + v * lanes, x[v]);
      }
      s_.largest[r] = after;
      s_.decay[r] = exp(splat(before - after))[0];
      store(s_.sum + r * lanes, fma(load<Floats>(s_.sum + r * lanes), splat(s_.decay[r]), sum));
    }
  }

  /// out = out · decay + Σ weight · value, over the keys that each query sees, in their order.
  void weigh(std::int64_t at) const {
    for (std::int64_t r = 0; r < s_.rows;) {
      const Range range = seen(r, at);
      int rows = 1;
      while (rows < max_rows && r + rows < s_.rows && seen(r + rows, at) == range) ++rows;
      if (range.begin < range.end) {
        with_constant<max_rows>(rows, [&](auto height) {
          std::int64_t i = 0;
          for (; i + max_vectors * lanes <= s_.width; i += max_vectors * lanes) weigh_tile<height.value, max_vectors>(r, i, range);
          if (i < s_.width) {
            with_constant<max_vectors>(static_cast<int>((s_.width - i) / lanes), [&](auto vectors) { weigh_tile<height.value, vectors.value>(r, i, range); });
          }
        });
      }
      r += rows;
    }
  }

  template <int height, int vectors>
  KVMESH_INLINE void weigh_tile(std::int64_t r, std::int64_t i, Range range) const {
    Floats acc[height][vectors];
    for (int m = 0; m < height; ++m) {
      const Floats decay = splat(s_.decay[r + m]);
      for (int v = 0; v < vectors; ++v) acc[m][v] = load<Floats>(s_.out + (r + m) * s_.width + i + v * lanes) * decay;
    }
    multiply<F32, height, vectors>(s_.score + r * block + range.begin, block, s_.v + range.begin * s_.width + i, s_.width, range.end - range.begin, {}, acc);
    for (int m = 0; m < height; ++m) {
      for (int v = 0; v < vectors; ++v) store(s_.out + (r + m) * s_.width + i + v * lanes, acc[m][v]);
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
};

}  // namespace

std::size_t attention_scratch(std::int64_t head_dim, std::int64_t rows) { return Scratch(head_dim, rows, nullptr).bytes; }

void attention(const AttentionTask& task, void* scratch) { Attention(task, scratch).run(); }

}  // namespace kvmesh::cpu::KVMESH_ISA
