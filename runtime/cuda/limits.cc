// The ceilings of this GPU: a large copy within its memory, and a large product by cuBLASLt on random numbers.
#include "runtime/cuda/cuda_device.h"

#include <cublasLt.h>

#include <algorithm>
#include <functional>
#include <random>
#include <vector>

namespace kvmesh::cuda {
namespace {

void must(cublasStatus_t status) {
  if (status != CUBLAS_STATUS_SUCCESS) fail(Fault::rank, "cuBLASLt: {}", cublasLtGetStatusString(status));
}

/// How many times a second `body`, enqueued, is done: the best of some runs.
double best_rate(cudaStream_t stream, const std::function<void()>& body) {
  cudaEvent_t from, to;
  cuda::must(cudaEventCreateWithFlags(&from, 0));
  cuda::must(cudaEventCreateWithFlags(&to, 0));
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    cuda::must(cudaEventRecord(from, stream));
    body();
    cuda::must(cudaEventRecord(to, stream));
    cuda::must(cudaEventSynchronize(to));
    float ms = 0;
    cuda::must(cudaEventElapsedTime(&ms, from, to));
    best = std::max(best, 1000 / static_cast<double>(ms));
  }
  cuda::must(cudaEventDestroy(from));
  cuda::must(cudaEventDestroy(to));
  return best;
}

/// x · y of size × size matrices, as the library does it best without workspace.
class Product {
 public:
  Product(DType dtype, std::int64_t size) {
    const cudaDataType type = dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const auto n = static_cast<std::uint64_t>(size);
    must(cublasLtCreate(&handle_));
    must(cublasLtMatmulDescCreate(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    must(cublasLtMatrixLayoutCreate(&matrix_, type, n, n, size));
    cublasLtMatmulPreference_t preference;
    must(cublasLtMatmulPreferenceCreate(&preference));
    int found = 0;
    must(cublasLtMatmulAlgoGetHeuristic(handle_, product_, matrix_, matrix_, matrix_, matrix_, preference, 1, &algorithm_, &found));
    must(cublasLtMatmulPreferenceDestroy(preference));
    if (found == 0) fail(Fault::rank, "cuBLASLt has no product of {} matrices of {} × {}", name_of(dtype), size, size);
  }
  ~Product() {
    cublasLtMatrixLayoutDestroy(matrix_);
    cublasLtMatmulDescDestroy(product_);
    cublasLtDestroy(handle_);
  }
  Product(const Product&) = delete;
  Product& operator=(const Product&) = delete;

  void operator()(const Tensor& x, const Tensor& y, const Tensor& out, cudaStream_t stream) const {
    const float one = 1, zero = 0;
    must(cublasLtMatmul(handle_, product_, &one, x.raw(), matrix_, y.raw(), matrix_, &zero, out.raw(), matrix_, out.raw(), matrix_, &algorithm_.algo, nullptr, 0, stream));
  }

 private:
  cublasLtHandle_t handle_ = nullptr;
  cublasLtMatmulDesc_t product_ = nullptr;
  cublasLtMatrixLayout_t matrix_ = nullptr;
  cublasLtMatmulHeuristicResult_t algorithm_{};
};

}  // namespace

Limits CudaDevice::measure_limits(DType dtype) {
  Limits limits;
  {
    const Tensor from = empty(DType::u8, {std::int64_t{1} << 30}), to = empty(DType::u8, {std::int64_t{1} << 30});
    cuda::must(cudaMemsetAsync(from.raw(), 1, from.bytes(), stream_->handle));
    limits.bytes_per_s = 2 * static_cast<double>(from.bytes()) *
                         best_rate(stream_->handle, [&] { cuda::must(cudaMemcpyAsync(to.raw(), from.raw(), from.bytes(), cudaMemcpyDefault, stream_->handle)); });
  }
  const std::int64_t size = dtype == DType::bf16 ? 8192 : 4096;
  const Tensor host = host_tensor(dtype, {size, size}), out = empty(dtype, {size, size});
  std::minstd_rand random(1);
  for (std::int64_t i = 0; i < host.numel(); ++i) {
    const float x = static_cast<float>(random()) / static_cast<float>(std::minstd_rand::max()) - 0.5f;
    if (dtype == DType::bf16) {
      host.data<bfloat16>()[i] = bfloat16(x);
    } else {
      host.data<float>()[i] = x;
    }
  }
  const Tensor x = resident(host), y = resident(host);
  const Product product(dtype, size);
  const auto n = static_cast<double>(size);
  limits.flops_per_s = 2 * n * n * n * best_rate(stream_->handle, [&] { product(x, y, out, stream_->handle); });
  return limits;
}

}  // namespace kvmesh::cuda
