// The loss over parts of the vocabulary: a block a row, its sums by one tree fixed by the part's width.
#include "runtime/cuda/device_code.h"
#include "runtime/cuda/train_kernels.h"

namespace kvmesh::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr int warps = threads / 32;

/// Source of the online sum: Milakov and Gimelshein (2018).
__global__ void __launch_bounds__(threads) softmax_sums_kernel(LossTask t) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ float parts[warps];
  const float* logits = t.logits + blockIdx.x * t.width;
  float* sums = t.sums + 3 * static_cast<std::int64_t>(blockIdx.x);
  const float before = t.first == 0 ? -infinity : sums[0];
  float largest = before;
  for (std::int64_t i = threadIdx.x; i < t.width; i += threads) largest = larger(largest, logits[i]);
  for (int lanes = 16; lanes > 0; lanes /= 2) largest = larger(largest, __shfl_xor_sync(all_lanes, largest, lanes));
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = largest;
  __syncthreads();
  for (int w = 0; w < warps; ++w) largest = larger(largest, parts[w]);
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < t.width; i += threads) sum = sum + exp_f32(logits[i] - largest);
  sum = block_sum<warps>(sum, parts);
  if (threadIdx.x != 0) return;
  const std::int64_t target = t.targets[blockIdx.x] - t.first;
  sums[0] = largest;
  sums[1] = t.first == 0 ? sum : fmaf(sums[1], exp_f32(before - largest), sum);
  if (target >= 0 && target < t.width) sums[2] = logits[target];
  else if (t.first == 0) sums[2] = 0;
}

template <typename T>
__global__ void __launch_bounds__(threads) cross_entropy_backward_kernel(LossTask t, float cap, float scale, T* dlogits) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t row = blockIdx.x * t.width, target = t.targets[blockIdx.x];
  const float* sums = t.sums + 3 * static_cast<std::int64_t>(blockIdx.x);
  const float most = sums[0], sum = sums[1], weight = scale / sum, slope = cap > 0 ? 1.0f / cap : 0.0f;
  for (std::int64_t i = threadIdx.x; i < t.width; i += threads) {
    float d = 0;
    if (target >= 0) {
      const float l = t.logits[row + i], e = exp_f32(l - most), c = slope * l;
      d = (t.first + i == target ? scale * (e / sum - 1.0f) : weight * e) * (1.0f - c * c);
    }
    dlogits[row + i] = from_float<T>(d);
  }
}

}  // namespace

cudaError_t softmax_sums(const Queue& queue, const LossTask& task) {
  return launch(queue, dim3(static_cast<unsigned>(task.rows)), threads, 0, softmax_sums_kernel, task);
}

cudaError_t cross_entropy_backward(const Queue& queue, const LossTask& task, float cap, float scale, void* dlogits, bool bf16) {
  const dim3 grid(static_cast<unsigned>(task.rows));
  if (bf16) return launch(queue, grid, threads, 0, cross_entropy_backward_kernel<bfloat16>, task, cap, scale, static_cast<bfloat16*>(dlogits));
  return launch(queue, grid, threads, 0, cross_entropy_backward_kernel<float>, task, cap, scale, static_cast<float*>(dlogits));
}

}  // namespace kvmesh::cuda
