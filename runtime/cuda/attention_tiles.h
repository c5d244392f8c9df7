// Products of a warp's 16 rows with blocks of rows in shared memory, as attention's passes need them. A lane has, with g = lane / 4 and q = lane % 4, rows g
// and g + 8 and of each 8 columns 2q and 2q + 1: [columns / 8][4], row g's two first.
#pragma once

#include "runtime/cuda/device_code.h"

namespace kvmesh::cuda {

constexpr int warp_rows = 16;

struct Lane {
  int warp, lane, g, q;
  __device__ Lane() : warp(static_cast<int>(threadIdx.x / 32)), lane(static_cast<int>(threadIdx.x % 32)), g(lane / 4), q(lane % 4) {}
};

/// Rows address(0), … of h elements to shared memory, by a block of `threads`; zeros from row `valid` (at least 1) on, and up to `head` elements. They are
/// there after copy_async_commit, copy_async_wait and __syncthreads.
template <typename T, int head, int threads, typename Address>
__device__ __forceinline__ void fill_rows(std::byte* shared, int stride, int rows, std::int64_t valid, std::int64_t h, const Address& address) {
  constexpr int of_piece = 16 / static_cast<int>(sizeof(T)), pieces = head / of_piece;
  const bool whole = h % of_piece == 0;
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += threads) {
    const int row = i / pieces, column = i % pieces * of_piece;
    T* to = reinterpret_cast<T*>(shared + row * stride) + column;
    const bool there = row < valid && column < h;
    const T* from = there ? address(row) + column : address(0);
    if (whole) {
      copy_16_async(to, from, there);
    } else {
      for (int e = 0; e < of_piece; ++e) to[e] = there && column + e < h ? from[e] : T(0.0f);
    }
  }
}

/// out [16, columns] += left · rightᵀ over h: `left` is the warp's first row, `right` the first of `columns` rows.
template <typename T, int head, int columns>
__device__ __forceinline__ void dots(const Lane& lane, const std::byte* left, const std::byte* right, int stride, std::int64_t h, float (&out)[columns / 8][4]) {
  const std::byte* row = left + lane.g * stride;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int d = 0; d < head; d += 32) {  // as linear.cu reads its tiles: 8 successive elements a lane
      const uint4 low = *reinterpret_cast<const uint4*>(row + d * 2 + lane.q * 16), high = *reinterpret_cast<const uint4*>(row + 8 * stride + d * 2 + lane.q * 16);
#pragma unroll
      for (int n = 0; n < columns / 8; ++n) {
        const uint4 other = *reinterpret_cast<const uint4*>(right + (n * 8 + lane.g) * stride + d * 2 + lane.q * 16);
        mma_bf16(out[n], low.x, high.x, low.y, high.y, other.x, other.y);
        mma_bf16(out[n], low.z, high.z, low.w, high.w, other.z, other.w);
      }
    }
  } else {
    const float *low = reinterpret_cast<const float*>(row), *high = reinterpret_cast<const float*>(row + 8 * stride);
#pragma unroll
    for (int n = 0; n < columns / 8; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float* other = reinterpret_cast<const float*>(right + (n * 8 + 2 * lane.q + c) * stride);
        for (std::int64_t d = 0; d < h; ++d) {
          out[n][c] = fmaf(low[d], other[d], out[n][c]);
          out[n][2 + c] = fmaf(high[d], other[d], out[n][2 + c]);
        }
      }
    }
  }
}

/// out [16, width] += weights [16, rows] · values [rows, width], values in shared memory; with bfloat16 the weights are rounded to it. `scratch`: the warp's
/// own [16][rows] floats in shared memory, of float32 only.
template <typename T, int rows, int width>
__device__ __forceinline__ void add_products(const Lane& lane, const float (&weights)[rows / 8][4], const std::byte* values, int stride, float* scratch, float (&out)[width / 8][4]) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < rows / 16; ++k) {
      std::uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &weights[2 * k + i / 2][2 * (i % 2)];
        a[i] = bfloat16(pair[0]).bits | static_cast<std::uint32_t>(bfloat16(pair[1]).bits) << 16;
      }
      const std::byte* row = values + (k * 16 + lane.lane % 16) * stride + lane.lane / 16 * 16;
#pragma unroll
      for (int d = 0; d < width / 8; d += 2) {
        std::uint32_t v[4];  // rows 0 … 7 and 8 … 15 of columns 8d …, then of the next eight
        load_matrices_transposed(v, row + d * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) mma_bf16(out[d + i], a[0], a[1], a[2], a[3], v[2 * i], v[2 * i + 1]);
      }
    }
  } else {
#pragma unroll
    for (int n = 0; n < rows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scratch[(lane.g + i / 2 * 8) * rows + n * 8 + 2 * lane.q + i % 2] = weights[n][i];
    }
    __syncwarp();
    for (int k = 0; k < rows; ++k) {
      const float* v = reinterpret_cast<const float*>(values + k * stride);
      const float low = scratch[lane.g * rows + k], high = scratch[(lane.g + 8) * rows + k];
#pragma unroll
      for (int i = 0; i < width / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out[i][c] = fmaf(c < 2 ? low : high, v[i * 8 + 2 * lane.q + c % 2], out[i][c]);
      }
    }
    __syncwarp();
  }
}

}  // namespace kvmesh::cuda
