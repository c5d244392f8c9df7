// How a packed weight lies in the device's memory, and how its integers become the elements that are multiplied.
#pragma once

#include "runtime/cuda/device_code.h"

namespace kvmesh::cuda {

// A bfloat16 weight lies in tiles of 8 columns × 32 k: [n / 8][k / 32][8][32], zeros beyond its edges. Lane l of a warp reads 16 bytes: 8 successive k of
// column l / 4, from 8 · (l % 4) on. Two products of 16 k use them: the first takes elements 0 … 3 of each lane, the second 4 … 7, and
// rows of x are read alike, so that both sides agree on which k is which. All reads are of 16 bytes and contiguous over a warp.
// Integers lie in the same order, a lane reads 8 bytes of them, and become the same bfloat16 or float32 in registers; behind them are the columns' scales.
constexpr std::int64_t tile_columns = 8, tile_k = 32;
constexpr std::int64_t span_tiles = 8;     // a span is 256 k
constexpr std::int64_t f32_columns = 64;   // a float32 weight: [n / 64][k][64]

template <bool int8>
constexpr std::int64_t tile_bytes = tile_columns * tile_k * (int8 ? 1 : 2);

/// Without the scales.
inline std::int64_t element_bytes(const WeightForm& w) {
  if (w.bf16) return ceil_div(w.n, tile_columns) * ceil_div(w.k, tile_k) * (w.int8 ? tile_bytes<true> : tile_bytes<false>);
  return ceil_div(w.n, f32_columns) * w.k * f32_columns * (w.int8 ? 1 : 4);
}

inline std::int64_t scale_floats(const WeightForm& w) { return !w.int8 ? 0 : w.bf16 ? ceil_div(w.n, tile_columns) * tile_columns : ceil_div(w.n, f32_columns) * f32_columns; }

/// Where in the order of elements [i, j] lies.
inline std::int64_t place_of(const WeightForm& w, std::int64_t i, std::int64_t j) {
  if (!w.bf16) return (j / f32_columns * w.k + i) * f32_columns + j % f32_columns;
  return ((j / tile_columns * ceil_div(w.k, tile_k) + i / tile_k) * tile_columns + j % tile_columns) * tile_k + i % tile_k;
}

/// What a lane reads of a tile: eight elements.
template <bool int8>
struct Eight {
  using type = uint4;
};
template <>
struct Eight<true> {
  using type = uint2;
};
template <bool int8>
using Stored = typename Eight<int8>::type;

/// Byte `i` of a word as the integer that it is, in float32, exactly: 2²³ + 128 + it, less that.
__device__ __forceinline__ float integer(std::uint32_t word, int i) {
  return __builtin_bit_cast(float, 0x4b000000u | ((word ^ 0x80808080u) >> (8 * i) & 0xffu)) - 8388736.0f;
}
/// Bytes i and i + 1 as bfloat16.
__device__ __forceinline__ std::uint32_t integer_pair(std::uint32_t word, int i) {
  return __builtin_bit_cast(std::uint32_t, integer(word, i)) >> 16 | __builtin_bit_cast(std::uint32_t, integer(word, i + 1));
}
__device__ __forceinline__ uint4 as_bf16(const uint4& w) { return w; }
__device__ __forceinline__ uint4 as_bf16(const uint2& w) { return {integer_pair(w.x, 0), integer_pair(w.x, 2), integer_pair(w.y, 0), integer_pair(w.y, 2)}; }

}  // namespace kvmesh::cuda
