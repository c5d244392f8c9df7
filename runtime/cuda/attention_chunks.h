// Chunks of a row's keys: how their results are folded, in ascending order, and where blocks that share a decoded token's chunks leave them for the last to fold.
#pragma once

#include "runtime/cuda/attention_tiles.h"

namespace kvmesh::cuda {

constexpr int block_keys = 64, chunk_blocks = 4, chunk_keys = block_keys * chunk_blocks;

/// Folds one more chunk's result, relative to its maximum `m`, into the earlier ones'.
struct Fold {
  float a, b;  // what the two are multiplied by
  __device__ __forceinline__ Fold(float& largest, float m) {
    const float both = larger(largest, m);
    a = exp_f32(largest - both);  // 0 where there was nothing: exp_f32 of a not-a-number is 0
    b = exp_f32(m - both);
    largest = both;
  }
  __device__ float operator()(float before, float chunk) const { return fmaf(chunk, b, before * a); }
};

/// Of each (token, head) pair its chunks' results, in the device's memory: output [head_dim], maximum, sum.
struct Partials {
  float* memory;
  std::int64_t splits, head_dim;  // most chunks of a pair

  __device__ float* at(std::int64_t pair, std::int64_t chunk) const { return memory + (pair * splits + chunk) * (head_dim + 2); }

  /// This lane's part of a pair, the row that it has as its first or second (`half`).
  template <int eights>
  __device__ __forceinline__ void write(std::int64_t pair, std::int64_t chunk, const Lane& lane, int half, const Softmax& softmax, const float (&out)[eights][4]) const {
    float* to = at(pair, chunk);
#pragma unroll
    for (int n = 0; n < eights; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (lane.column(n, c) < head_dim) to[lane.column(n, c)] = out[n][2 * half + c];
      }
    }
    if (lane.q == 0) to[head_dim] = softmax.largest[half], to[head_dim + 1] = softmax.sum[half];
  }

  /// Element `column` of a pair's result.
  __device__ float folded(std::int64_t pair, std::int64_t column, std::int64_t chunks) const {
    float largest = -infinity, sum = 0, out = 0;
    for (std::int64_t z = 0; z < chunks; ++z) {
      const float* chunk = at(pair, z);
      const Fold fold(largest, __ldcg(chunk + head_dim));
      sum = fold(sum, __ldcg(chunk + head_dim + 1));
      out = fold(out, __ldcg(chunk + column));
    }
    return out / sum;
  }
};

/// By the whole block: whether it is the last of `blocks` to come here, which then sees what the others have written. `arrived` is 0 before and afterwards.
__device__ __forceinline__ bool last_to_arrive(unsigned* arrived, std::int64_t blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrived, 1u) == static_cast<unsigned>(blocks - 1);
    if (last) *arrived = 0;
  }
  __syncthreads();
  if (last) __threadfence();
  return last;
}

}  // namespace kvmesh::cuda
