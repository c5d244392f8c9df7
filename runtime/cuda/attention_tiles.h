// What attention does with tiles, forwards and backwards: a warp's 16 rows meet blocks of columns in shared memory. A lane has two rows and of each eight
// columns two: [eights][4], its first row's two first.
#pragma once

#include "runtime/cuda/device_code.h"

namespace kvmesh::cuda {

constexpr int warp_rows = 16;

struct Lane {
  int warp, lane, g, q;
  __device__ Lane() : warp(static_cast<int>(threadIdx.x / 32)), lane(static_cast<int>(threadIdx.x % 32)), g(lane / 4), q(lane % 4) {}
  /// Its first or second row (`half` 0 or 1) among the block's.
  __device__ __forceinline__ int row(int half) const { return warp * warp_rows + g + 8 * half; }
  /// Its first or second column (`c` 0 or 1) of the n-th eight.
  __device__ __forceinline__ int column(int n, int c) const { return n * 8 + 2 * q + c; }
};

/// Rows address(0), … of h elements to shared memory, by a block of `threads`; zeros in rows outside [first, valid), valid ≥ 1, and up to `head` elements. They
/// are there after copy_async_commit, copy_async_wait and __syncthreads.
template <typename T, int head, int threads, typename Address>
__device__ __forceinline__ void fill_rows(std::byte* shared, int stride, int rows, std::int64_t first, std::int64_t valid, std::int64_t h, const Address& address) {
  constexpr int of_piece = 16 / static_cast<int>(sizeof(T)), pieces = head / of_piece;
  const bool whole = h % of_piece == 0;
  for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += threads) {
    const int row = i / pieces, column = i % pieces * of_piece;
    T* to = reinterpret_cast<T*>(shared + row * stride) + column;
    const bool there = row >= first && row < valid && column < h;
    const T* from = there ? address(row) + column : address(valid - 1);
    if (whole) {
      copy_16_async(to, from, there);
    } else {
#pragma unroll
      for (int e = 0; e < of_piece; ++e) to[e] = there && column + e < h ? from[e] : T(0.0f);
    }
  }
}

/// out [16, columns] += left · rightᵀ over h: `left` is the warp's first row, `right` the first of as many rows as out has columns.
template <typename T, int head, int eights>
__device__ __forceinline__ void dots(const Lane& lane, const std::byte* left, const std::byte* right, int stride, std::int64_t h, float (&out)[eights][4]) {
  const std::byte* row = left + lane.g * stride;
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int d = 0; d < head; d += 32) {  // as linear.cu reads its tiles: 8 successive elements a lane
      const uint4 low = *reinterpret_cast<const uint4*>(row + d * 2 + lane.q * 16), high = *reinterpret_cast<const uint4*>(row + 8 * stride + d * 2 + lane.q * 16);
#pragma unroll
      for (int n = 0; n < eights; ++n) {
        const uint4 other = *reinterpret_cast<const uint4*>(right + (n * 8 + lane.g) * stride + d * 2 + lane.q * 16);
        mma_bf16(out[n], low.x, high.x, low.y, high.y, other.x, other.y);
        mma_bf16(out[n], low.z, high.z, low.w, high.w, other.z, other.w);
      }
    }
  } else {
    const float *low = reinterpret_cast<const float*>(row), *high = reinterpret_cast<const float*>(row + 8 * stride);
#pragma unroll
    for (int n = 0; n < eights; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float* other = reinterpret_cast<const float*>(right + lane.column(n, c) * stride);
        for (std::int64_t d = 0; d < h; ++d) {
          out[n][c] = fmaf(low[d], other[d], out[n][c]);
          out[n][2 + c] = fmaf(high[d], other[d], out[n][2 + c]);
        }
      }
    }
  }
}

/// The softmax of a lane's two rows while their scores come block by block. Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).
struct Softmax {
  float largest[2] = {-infinity, -infinity};  // scores so far
  float sum[2] = {};                          // of this lane's weights

  /// Scores [16, columns] become weights relative to the largest score so far, 0 where not sees(half, column); decay[half] is what earlier weights are to be
  /// multiplied by. While a row sees nothing its weights are 0: exp_f32 of a not-a-number is 0.
  template <int eights, typename Sees>
  __device__ __forceinline__ void add(const Lane& lane, float scale, const Sees& sees, float (&score)[eights][4], float (&decay)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float most = -infinity;
#pragma unroll
      for (int n = 0; n < eights; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& x = score[n][2 * half + c];
          x = sees(half, lane.column(n, c)) ? x * scale : -infinity;
          most = larger(most, x);
        }
      }
#pragma unroll
      for (int lanes = 1; lanes <= 2; lanes *= 2) most = larger(most, __shfl_xor_sync(all_lanes, most, lanes));
      const float now = larger(largest[half], most);
      decay[half] = exp_f32(largest[half] - now);
      float more = 0;
#pragma unroll
      for (int n = 0; n < eights; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) more = more + (score[n][2 * half + c] = exp_f32(score[n][2 * half + c] - now));
      }
      largest[half] = now;
      sum[half] = fmaf(sum[half], decay[half], more);
    }
  }

  /// From here on `sum` is that of all lanes which share the row.
  __device__ __forceinline__ void gather_sums() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int lanes = 1; lanes <= 2; lanes *= 2) sum[half] = sum[half] + __shfl_xor_sync(all_lanes, sum[half], lanes);
    }
  }
};

/// out [16, width] += weights [16, rows] · values [rows, width], values in shared memory. With bfloat16 a weight enters as `parts` of them, each being what those
/// before it leave over. `scratch`: the warp's own [16][rows] floats in shared memory, of float32 only.
template <typename T, int parts, int row_eights, int eights>
__device__ __forceinline__ void add_products(const Lane& lane, const float (&weights)[row_eights][4], const std::byte* values, int stride, float* scratch, float (&out)[eights][4]) {
  if constexpr (sizeof(T) == 2) {
#pragma unroll
    for (int k = 0; k < row_eights / 2; ++k) {
      std::uint32_t a[parts][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float low = weights[2 * k + i / 2][2 * (i % 2)], high = weights[2 * k + i / 2][2 * (i % 2) + 1];
#pragma unroll
        for (int part = 0; part < parts; ++part) {
          const bfloat16 l(low), h(high);
          a[part][i] = l.bits | static_cast<std::uint32_t>(h.bits) << 16;
          low = low - to_float(l);
          high = high - to_float(h);
        }
      }
      const std::byte* row = values + (k * 16 + lane.lane % 16) * stride + lane.lane / 16 * 16;
#pragma unroll
      for (int d = 0; d < eights; d += 2) {
        std::uint32_t v[4];  // rows 0 … 7 and 8 … 15 of columns 8d …, then of the next eight
        load_matrices_transposed(v, row + d * 16);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int part = 0; part < parts; ++part) mma_bf16(out[d + i], a[part][0], a[part][1], a[part][2], a[part][3], v[2 * i], v[2 * i + 1]);
        }
      }
    }
  } else {
    constexpr int rows = row_eights * 8;
#pragma unroll
    for (int n = 0; n < row_eights; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scratch[(lane.g + i / 2 * 8) * rows + lane.column(n, i % 2)] = weights[n][i];
    }
    __syncwarp();
    for (int k = 0; k < rows; ++k) {
      const float* v = reinterpret_cast<const float*>(values + k * stride);
      const float low = scratch[lane.g * rows + k], high = scratch[(lane.g + 8) * rows + k];
#pragma unroll
      for (int i = 0; i < eights; ++i) {
#pragma unroll
        for (int c = 0; c < 4; ++c) out[i][c] = fmaf(c < 2 ? low : high, v[lane.column(i, c % 2)], out[i][c]);
      }
    }
    __syncwarp();
  }
}

/// start.operator()<head>() for the smallest size of a head that kernels are compiled for and that holds h elements.
template <typename Start>
cudaError_t start_for_head(std::int64_t h, const Start& start) {
  if (h <= 32) return start.template operator()<32>();
  if (h <= 64) return start.template operator()<64>();
  if (h <= 96) return start.template operator()<96>();
  if (h <= 128) return start.template operator()<128>();
  return h <= largest_head ? start.template operator()<largest_head>() : cudaErrorInvalidValue;
}

}  // namespace kvmesh::cuda
