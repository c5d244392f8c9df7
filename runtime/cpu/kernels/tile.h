// The one multiply-accumulate loop of this library: a few rows times a few vectors of columns, held in registers, over all of
// K. Every product of matrices goes through it, so one output element is always the same chain of operations over k = 0, 1, …
// whatever the number of rows.
#pragma once

#include "runtime/cpu/kernels/simd.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr int max_rows = 6;                          // of a tile: 6 · vectors accumulators fit the registers
constexpr int max_vectors = lanes == 16 ? 4 : 2;     // of a tile: its columns are max_vectors · lanes
constexpr std::int64_t panel = max_vectors * lanes;  // columns of a packed panel

#if defined(__AMX_BF16__)
constexpr bool by_tiles = true;  // bfloat16 by AMX: amx.h
#else
constexpr bool by_tiles = false;
#endif

/// float32 · float32; a step is one k.
struct F32 {
  using Left = float;
  static constexpr int left_per_step = 1;  // elements of Left that one step reads
  using Right = float;                     // 32 bits a column and step

  template <int rows, int vectors>
  KVMESH_INLINE static void step(const Left* x, std::int64_t stride, const Right* b, Floats (&acc)[rows][vectors]) {
    Floats w[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) w[v] = load<Floats>(b + v * lanes);
#pragma GCC unroll 6
    for (int m = 0; m < rows; ++m) {
      const Floats a = splat(x[m * stride]);
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) acc[m][v] = fma(a, w[v], acc[m][v]);
    }
  }
};

#if defined(__AVX512BF16__)
/// bfloat16 · bfloat16, two k a step, by the dot-product instruction.
struct Bf16 {
  using Left = std::uint32_t;  // two bfloat16, the lower k in the lower half
  static constexpr int left_per_step = 1;
  using Right = std::uint32_t;

  template <int rows, int vectors>
  KVMESH_INLINE static void step(const Left* x, std::int64_t stride, const Right* b, Floats (&acc)[rows][vectors]) {
    Words w[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) w[v] = load<Words>(b + v * lanes);
#pragma GCC unroll 6
    for (int m = 0; m < rows; ++m) {
      const Words a = splat_word(load<std::uint32_t>(x + m * stride));
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) acc[m][v] = (Floats)_mm512_dpbf16_ps((__m512)acc[m][v], (__m512bh)a, (__m512bh)w[v]);
    }
  }
};
constexpr bool left_is_widened = false;
#else
/// bfloat16 columns, two k a step, widened in registers; rows widened to float32 beforehand.
struct Bf16 {
  using Left = float;
  static constexpr int left_per_step = 2;
  using Right = std::uint32_t;

  template <int rows, int vectors>
  KVMESH_INLINE static void step(const Left* x, std::int64_t stride, const Right* b, Floats (&acc)[rows][vectors]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Floats w[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) {
        const Words pair = load<Words>(b + v * lanes);
        w[v] = (Floats)(half == 0 ? pair << 16 : pair & 0xffff0000u);
      }
#pragma GCC unroll 6
      for (int m = 0; m < rows; ++m) {
        const Floats a = splat(x[m * stride + half]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) acc[m][v] = fma(a, w[v], acc[m][v]);
      }
    }
  }
};
constexpr bool left_is_widened = true;
#endif

/// Cache lines that a multiplication asks for while it runs: in its first steps, `lines` a step from `next` on, until `end`; into the first-level cache
/// when they are needed `soon`.
struct Prefetch {
  const char* next = nullptr;
  const char* end = nullptr;
  int lines = 0;
  bool soon = false;

  KVMESH_INLINE void step() {
    for (int i = 0; i < lines && next < end; ++i, next += 64) {
      if (soon) {
        __builtin_prefetch(next);
      } else {
        __builtin_prefetch(next, 0, 2);
      }
    }
  }
};

/// acc[m][v] += Σ over steps of x[m] · b, m by `stride` elements, steps of b by `row` columns.
template <typename Kind, int rows, int vectors>
KVMESH_INLINE void multiply(const typename Kind::Left* x, std::int64_t stride, const typename Kind::Right* b, std::int64_t row, std::int64_t steps,
                            Prefetch prefetch, Floats (&acc)[rows][vectors]) {
  std::int64_t s = 0;
  for (; s < steps && prefetch.next < prefetch.end; ++s, x += Kind::left_per_step, b += row) {
    prefetch.step();
    Kind::template step<rows, vectors>(x, stride, b, acc);
  }
  for (; s < steps; ++s, x += Kind::left_per_step, b += row) Kind::template step<rows, vectors>(x, stride, b, acc);
}

template <int n>
struct Int {
  static constexpr int value = n;
};

/// Calls f(Int<n>) for n in 1 … most.
template <int most, typename F>
KVMESH_INLINE void with_constant(int n, const F& f) {
  if constexpr (most > 1) {
    if (n < most) return with_constant<most - 1>(n, f);
  }
  f(Int<most>{});
}

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
