// Attention of a group of query heads over one key head, block by block (attention.h): by vectors here, by tiles in attention_tiles.h.
#include "runtime/cpu/kernels/attention.h"

#include "runtime/cpu/kernels/attention_tiles.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

class VectorAttention : public AttentionBlock {
 public:
  VectorAttention(const AttentionTask& task, void* scratch)
      : AttentionBlock(task, scratch), in_place_(s_.rows <= max_rows && task.head_dim % lanes == 0) {
    for (std::int64_t r = 0; r < s_.rows; ++r) {
      float* to = s_.query + r * s_.width;
      if (t_.bf16 && !left_is_widened) {
        __builtin_memcpy(to, static_cast<const std::uint16_t*>(t_.q) + query_at(r), static_cast<std::size_t>(t_.head_dim) * 2);
      } else {
        read_floats(t_.q, t_.bf16, query_at(r), t_.head_dim, to);
      }
    }
  }

  void step() {
    transpose_keys();
    if (t_.bf16) {
      products<Bf16>();
    } else {
      products<F32>();
    }
    soften([&](std::int64_t r, const Floats(&x)[block_vectors]) {
      for (int v = 0; v < block_vectors; ++v) store(s_.score + r * block + v * lanes, x[v]);
    });
    if (!in_place_) read_values();
    weigh();
  }

  void finish() { write_out(); }

 private:
  const bool in_place_;  // few queries: a copy of the values would not pay

  /// score = query · keys.
  template <typename Kind>
  void products() const {
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

  void read_values() {
    for (std::int64_t j = 0; j < count_; ++j) {
      float* to = s_.v + j * s_.width;
      read_floats(slot(t_.v, j), t_.bf16, 0, t_.head_dim, to);
      for (std::int64_t i = t_.head_dim; i < s_.width; ++i) to[i] = 0;
    }
  }

  /// out = out · decay + Σ weight · value, over the keys that each query sees, in their order.
  void weigh() {
    const std::int64_t width = round_up(t_.head_dim, lanes);
    for (std::int64_t r = 0; r < s_.rows;) {
      const Range range = seen(r);
      int rows = 1;
      while (rows < max_rows && r + rows < s_.rows && seen(r + rows) == range) ++rows;
      if (range.begin < range.end) {
        with_constant<max_rows>(rows, [&](auto height) {
          std::int64_t i = 0;
          for (; i + max_vectors * lanes <= width; i += max_vectors * lanes) weigh_columns<height.value, max_vectors>(r, i, range);
          if (i < width) {
            with_constant<max_vectors>(static_cast<int>((width - i) / lanes), [&](auto vectors) { weigh_columns<height.value, vectors.value>(r, i, range); });
          }
        });
      }
      r += rows;
    }
  }

  template <int height, int vectors>
  KVMESH_INLINE void weigh_columns(std::int64_t r, std::int64_t i, Range range) {
    Floats acc[height][vectors];
    for (int m = 0; m < height; ++m) {
      const Floats decay = splat(s_.decay[r + m]);
      for (int v = 0; v < vectors; ++v) acc[m][v] = load<Floats>(s_.out + (r + m) * s_.width + i + v * lanes) * decay;
    }
    const float* weight = s_.score + r * block;
    if (!in_place_) {
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

  template <int height, int vectors, typename Load>
  KVMESH_INLINE void weigh_in_place(const float* weight, std::int64_t i, Range range, Floats (&acc)[height][vectors], const Load& load_values) {
    for (std::int64_t j = range.begin; j < range.end; ++j) {
      const char* from = slot(t_.v, j) + i * element();
      if (i == 0) prefetch(64);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Floats value = load_values(from + v * lanes * element());
#pragma GCC unroll 6
        for (int m = 0; m < height; ++m) acc[m][v] = fma(splat(weight[m * block + j]), value, acc[m][v]);
      }
    }
  }
};

template <typename Way>
void run(Way way) {
  for (std::int64_t at = way.oldest() / block * block; at < way.keys(); at += block) {
    way.go_to(at);
    way.step();
  }
  way.finish();
}

}  // namespace

std::size_t attention_scratch(std::int64_t head_dim, std::int64_t rows) { return Scratch(head_dim, rows, nullptr).bytes; }

void attention(const AttentionTask& task, void* scratch) {
#if defined(__AMX_BF16__)
  if (task.bf16) return run(TileAttention(task, scratch));
#endif
  run(VectorAttention(task, scratch));
}

}  // namespace kvmesh::cpu::KVMESH_ISA
