// Values that are not finite, of keys that not all of a tile's queries see. Multiplied by the weight of those who do not see them, 0, they would be
// not-a-numbers for these as well: so they make not-a-numbers, in their column, of the queries that see them, and are zeros then for all.
#pragma once

#include "runtime/cuda/attention_tiles.h"

namespace kvmesh::cuda {

/// Of the part of a block's values, `rows` rows of `head` elements in shared memory, that is this thread's to look at.
template <typename T, int head, int threads>
__device__ __forceinline__ bool not_finite(const std::byte* values, int stride, int rows) {
  constexpr std::uint32_t all_ones = sizeof(T) == 2 ? 0x7f80 : 0x7f800000;
  constexpr int pieces = head * static_cast<int>(sizeof(T)) / 16;
  bool found = false;
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += threads) {
    const uint4 piece = *reinterpret_cast<const uint4*>(values + i / pieces * stride + i % pieces * 16);
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const std::uint32_t x = part == 0 ? piece.x : part == 1 ? piece.y : part == 2 ? piece.z : piece.w;
      found = found || (x & all_ones) == all_ones || (sizeof(T) == 2 && (x >> 16 & all_ones) == all_ones);
    }
  }
  return found;
}

/// Confines them to the queries that see them; out is the sums of this lane's two queries, sees(half, row) tells whether one sees a row. By the whole block.
template <typename T, int head, int threads, typename Sees>
__device__ void confine(const Lane& lane, std::byte* values, int stride, int rows, const Sees& sees, float (&out)[head / 8][4]) {
  const auto finite = [](T x) { return !(to_float(x) - to_float(x) != 0); };
#pragma unroll 1
  for (int row = 0; row < rows; ++row) {
    const T* v = reinterpret_cast<const T*>(values + row * stride);
    const bool seen[2] = {sees(0, row), sees(1, row)};
#pragma unroll
    for (int n = 0; n < head / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (seen[i / 2] && !finite(v[lane.column(n, i % 2)])) out[n][i] = not_a_number;
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < rows * head; i += threads) {
    T& x = reinterpret_cast<T*>(values + i / head * stride)[i % head];
    if (!finite(x)) x = T(0.0f);
  }
  __syncthreads();
}

}  // namespace kvmesh::cuda
