// What kernels share: launching, warps' sums, conversions, and functions that give the same bits wherever they are compiled (nothing is fused but
// what says fmaf: nvcc -fmad=false).
#pragma once

#include "runtime/cuda/kernels.h"
#include "runtime/dtype.h"

#include <kvmesh_hardware.h>

namespace kvmesh::cuda {

/// The one way to start a kernel.
template <typename... Params, typename... Args>
cudaError_t launch(const Queue& queue, dim3 grid, unsigned threads, std::size_t shared_bytes, void (*kernel)(Params...), Args... args) {
  constexpr std::size_t always = 48 << 10;  // beyond, a kernel must ask
  if (shared_bytes > always) {
    const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = queue.stream;
  config.attrs = &early;
  config.numAttrs = queue.early_start ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

constexpr unsigned all_lanes = 0xffffffffu;
constexpr float infinity = __builtin_huge_valf(), not_a_number = __builtin_nanf("");

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bfloat16 x) { return x; }
template <typename T>
__device__ __forceinline__ T from_float(float x) {
  return T(x);
}

/// Butterflies over the lanes: every lane gets the same sum, by the same tree.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int lanes = 16; lanes > 0; lanes /= 2) x = x + __shfl_xor_sync(all_lanes, x, lanes);
  return x;
}

/// The sum of all threads' numbers, by one tree; for a whole block of `warps` (a power of two), `parts` [warps] in shared memory.
template <int warps, typename T>
__device__ __forceinline__ T block_sum(T sum, T* parts) {
  sum = warp_sum(sum);
  __syncthreads();  // what was in parts has been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  T all[warps];
  for (int i = 0; i < warps; ++i) all[i] = parts[i];
  for (int n = warps / 2; n > 0; n /= 2) {
    for (int i = 0; i < n; ++i) all[i] = all[2 * i] + all[2 * i + 1];
  }
  return all[0];
}

__host__ __device__ __forceinline__ float larger(float a, float b) { return a > b ? a : b; }

template <typename Int>
__host__ __device__ constexpr Int ceil_div(Int a, Int b) {
  return (a + b - 1) / b;
}

/// 1 / sqrt(mean + eps) of `width` squares that add up to `sum`.
__device__ __forceinline__ float inverse_rms(float sum, std::int64_t width, float eps) { return 1.0f / sqrtf(sum / static_cast<float>(width) + eps); }

/// Within a few ulp everywhere, near 0 too. Source of the polynomial: S. L. Moshier's Cephes, tanhf.
__device__ __forceinline__ float tanh_f32(float x) {
  const float a = x < 0 ? -x : x;
  if (a < 0.625f) {
    const float z = x * x;
    float p = -5.70498872745e-3f;
    p = fmaf(p, z, 2.06390887954e-2f);
    p = fmaf(p, z, -5.37397155531e-2f);
    p = fmaf(p, z, 1.33314422036e-1f);
    p = fmaf(p, z, -3.33332819422e-1f);
    return fmaf(p * z, x, x);
  }
  if (!(x == x)) return x;
  const float e = exp_f32(-2.0f * a);
  const float t = (1.0f - e) / (1.0f + e);
  return x < 0 ? -t : t;
}

/// x · Φ(x), as the CPU has it (runtime/cpu/kernels/math.h).
__device__ __forceinline__ float gelu_f32(float x) {
  const float t = 1.0f / fmaf(x < 0 ? -x : x, 0.3125f, 1.0f);
  float p = -1.8479573e-2f;
  p = fmaf(p, t, 8.8445991e-2f);
  p = fmaf(p, t, -1.4400621e-1f);
  p = fmaf(p, t, 6.4771585e-2f);
  p = fmaf(p, t, 5.4331459e-3f);
  p = fmaf(p, t, 5.1236574e-2f);
  p = fmaf(p, t, 9.1583036e-2f);
  p = fmaf(p, t, 1.1156328e-1f);
  p = fmaf(p, t, 1.2478877e-1f);
  p = fmaf(p, t, 1.2466340e-1f);
  const float tail = exp_f32(-0.5f * (x * x)) * (p * t);
  return x * (x < 0 ? tail : 1.0f - tail);
}

/// ½·x·(1 + tanh u), u = √(2/π)·(x + 0.044715·x³): x / (1 + exp(-2u)), by the exponential of what is not positive.
__device__ __forceinline__ float gelu_tanh_f32(float x) {
  const float twice = x * fmaf(x * x, 7.1354816e-2f, 1.5957691f);
  const float e = exp_f32(twice < 0 ? twice : -twice);
  return twice < 0 ? x * e / (1.0f + e) : x / (1.0f + e);
}

}  // namespace kvmesh::cuda
