// What this instruction set can do at most: multiply-accumulates that never leave the registers, and reads of memory.
#include "runtime/cpu/kernels/amx.h"
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

// The compiler must take `v` for changed, so it can neither hoist what is computed from it nor drop what computes it.
KVMESH_INLINE void opaque(Floats& v) { asm volatile("" : "+v"(v)); }

KVMESH_INLINE Floats accumulate(bool bf16, Floats a, Floats b, Floats c) {
#if defined(__AVX512BF16__)
  if (bf16) return (Floats)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
#endif
  (void)bf16;
  return fma(a, b, c);
}

template <bool bf16>
double arithmetic(std::int64_t iterations) {
  Floats acc[max_rows][max_vectors] = {};
  Floats a = splat(0.5f), b = splat(0.25f);
  opaque(a);
  opaque(b);
  for (auto& row : acc) {
    for (Floats& v : row) opaque(v);  // else equal accumulators are computed once
  }
  for (std::int64_t i = 0; i < iterations; ++i) {
#pragma GCC unroll 6
    for (int m = 0; m < max_rows; ++m) {
#pragma GCC unroll 4
      for (int v = 0; v < max_vectors; ++v) acc[m][v] = accumulate(bf16, a, b, acc[m][v]);
    }
  }
  for (auto& row : acc) {
    for (Floats& v : row) opaque(v);
  }
  constexpr int k_per_operation = bf16 && !left_is_widened ? 2 : 1;
  return 2.0 * k_per_operation * max_rows * max_vectors * lanes * static_cast<double>(iterations);
}

#if defined(__AMX_BF16__)
double tile_arithmetic(std::int64_t iterations) {
  Tiles tiles;
  tiles.shape(tile_height, tile_height);
  for (std::int64_t i = 0; i < iterations; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  tiles.release();
  return 2.0 * 4 * tile_height * 16 * 2 * span_words * static_cast<double>(iterations);
}
#endif

}  // namespace

double multiply_registers(bool bf16, std::int64_t iterations) {
#if defined(__AMX_BF16__)
  if (bf16) return tile_arithmetic(iterations);
#endif
  return bf16 ? arithmetic<true>(iterations) : arithmetic<false>(iterations);
}

void read_memory(const void* memory, std::int64_t bytes) {
  constexpr int streams = 4;
  constexpr std::int64_t stride = 4 * lanes;  // bytes of a vector
  const char* p = static_cast<const char*>(memory);
  Floats sum[streams] = {};
  for (std::int64_t i = 0; i + streams * stride <= bytes; i += streams * stride) {
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) __builtin_prefetch(p + i + s * stride + 4096);
#pragma GCC unroll 4
    for (int s = 0; s < streams; ++s) sum[s] = (Floats)((Words)sum[s] | load<Words>(p + i + s * stride));
  }
  for (Floats& s : sum) opaque(s);
}

}  // namespace kvmesh::cpu::KVMESH_ISA
