// The one multiply-accumulate loop of this library: a few rows times a few vectors of columns, held in registers, over all of
// K. Every product of matrices goes through it, so one output element is always the same chain of operations over k = 0, 1, …
// whatever the number of rows.
#pragma once

#include "runtime/cpu/kernels/columns.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr int max_rows = 6;  // of a tile: 6 · vectors accumulators fit the registers

#if defined(__AMX_BF16__)
constexpr bool by_tiles = true;  // bfloat16 by AMX: amx.h
#else
constexpr bool by_tiles = false;
#endif

// Columns may also lie as integers (columns.h), as which they are what the words would be that hold the same numbers.

/// float32 · float32; a step is one k.
struct F32 {
  using Left = float;
  static constexpr int left_per_step = 1;  // elements of Left that one step reads
  using Right = float;                     // 32 bits a column and step
  using Vector = Floats;
  static constexpr int k_per_step = 1;

  template <int rows, int vectors, typename Stored>
  KVMESH_INLINE static void step(const Left* x, std::int64_t stride, const Stored* b, Floats (&acc)[rows][vectors]) {
    Floats w[vectors];
    read_columns(b, w);
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
  using Vector = Words;
  static constexpr int k_per_step = 2;

  template <int rows, int vectors, typename Stored>
  KVMESH_INLINE static void step(const Left* x, std::int64_t stride, const Stored* b, Floats (&acc)[rows][vectors]) {
    Words w[vectors];
    read_columns(b, w);
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
  using Vector = Words;
  static constexpr int k_per_step = 2;

  KVMESH_INLINE static Floats half_of(const Right* b, int half) { return (Floats)(half == 0 ? load<Words>(b) << 16 : load<Words>(b) & 0xffff0000u); }
  KVMESH_INLINE static Floats half_of(const std::int8_t* b, int half) { return widen_bytes(load<Bytes>(b + half * panel)); }

  template <int rows, int vectors, typename Stored>
  KVMESH_INLINE static void step(const Left* x, std::int64_t stride, const Stored* b, Floats (&acc)[rows][vectors]) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      Floats w[vectors];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) w[v] = half_of(b + v * lanes, half);
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

/// acc[m][v] += Σ over steps of x[m] · b, m by `stride` elements, steps of b by `row` elements.
template <typename Kind, int rows, int vectors, typename Stored>
KVMESH_INLINE void multiply(const typename Kind::Left* x, std::int64_t stride, const Stored* b, std::int64_t row, std::int64_t steps,
                            Prefetch prefetch, Floats (&acc)[rows][vectors]) {
  Floats sums[rows][vectors];  // nothing else sees them, so that the compiler has no reason to keep them anywhere but in registers
  const auto copy = [](const Floats (&from)[rows][vectors], Floats (&to)[rows][vectors]) {
#pragma GCC unroll 6
    for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) to[m][v] = from[m][v];
    }
  };
  copy(acc, sums);
  std::int64_t s = 0;
  for (; s < steps && prefetch.next < prefetch.end; ++s, x += Kind::left_per_step, b += row) {
    prefetch.step();
    Kind::template step<rows, vectors>(x, stride, b, sums);
  }
  for (; s < steps; ++s, x += Kind::left_per_step, b += row) Kind::template step<rows, vectors>(x, stride, b, sums);
  copy(sums, acc);
}

/// The same with panels `apart` elements from each other, both at once: sums of one or two rows alone would wait for themselves. Asks for what comes
/// a little later, behind these panels that of the two after them.
template <typename Kind, int rows, int vectors, typename Stored>
KVMESH_INLINE void multiply_two(const typename Kind::Left* x, std::int64_t stride, const Stored* b, std::int64_t apart, std::int64_t row, std::int64_t steps,
                                Floats (&acc)[2][rows][vectors]) {
  constexpr std::int64_t soon = 4096 / sizeof(Stored), line = 64 / sizeof(Stored);
  const std::int64_t within = steps - soon / row;
  for (std::int64_t s = 0; s < steps; ++s, x += Kind::left_per_step, b += row) {
    const Stored* next = b + soon + (s < within ? 0 : apart);
    for (std::int64_t i = 0; i + line <= row; i += line) {
      __builtin_prefetch(next + i);
      __builtin_prefetch(next + apart + i);
    }
    Kind::template step<rows, vectors>(x, stride, b, acc[0]);
    Kind::template step<rows, vectors>(x, stride, b + apart, acc[1]);
  }
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
