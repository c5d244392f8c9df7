// The fold of all_reduce on a GPU.
#include "comm/fold.h"

#include <cuda_runtime.h>

#include <algorithm>

namespace kvmesh {
namespace {

constexpr int threads = 256;
constexpr std::int64_t most_blocks = 1024;

template <typename T>
__global__ void fold_ranks(const T* operands, T* out, std::int64_t n, int ranks, Reduce op) {
  const std::int64_t step = std::int64_t{blockDim.x} * gridDim.x;
  for (std::int64_t i = std::int64_t{blockDim.x} * blockIdx.x + threadIdx.x; i < n; i += step) {
    T all = operands[i];
    for (int r = 1; r < ranks; ++r) all = fold(op, all, operands[r * n + i]);
    out[i] = all;
  }
}

template <typename T>
cudaError_t launch(const void* operands, void* out, std::int64_t n, int ranks, Reduce op, void* stream) {
  const auto blocks = static_cast<unsigned>(std::min(most_blocks, (n + threads - 1) / threads));
  fold_ranks<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(static_cast<const T*>(operands), static_cast<T*>(out), n, ranks, op);
  return cudaGetLastError();
}

}  // namespace

int fold_on_device(DType dtype, const void* operands, void* out, std::int64_t n, int ranks, Reduce op, void* stream) {
  switch (dtype) {
    case DType::i32: return launch<std::int32_t>(operands, out, n, ranks, op, stream);
    case DType::i64: return launch<std::int64_t>(operands, out, n, ranks, op, stream);
    case DType::u64: return launch<std::uint64_t>(operands, out, n, ranks, op, stream);
    case DType::f32: return launch<float>(operands, out, n, ranks, op, stream);
    default: return launch<double>(operands, out, n, ranks, op, stream);
  }
}

}  // namespace kvmesh
