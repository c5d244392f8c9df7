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

/// A handle that a library made.
template <typename Handle, auto destroy>
struct Owned {
  Handle handle = nullptr;
  Owned() = default;
  ~Owned() {
    if (handle) destroy(handle);
  }
  Owned(Owned&&) = delete;
};

/// How many times a second `body`, enqueued, is done: the best of some runs.
double best_rate(cudaStream_t stream, const std::function<void()>& meet, const std::function<void()>& body) {
  Owned<cudaEvent_t, cudaEventDestroy> from, to;
  cuda::must(cudaEventCreateWithFlags(&from.handle, 0));
  cuda::must(cudaEventCreateWithFlags(&to.handle, 0));
  double best = 0;
  for (int i = 0; i < 10; ++i) {
    meet();
    cuda::must(cudaEventRecord(from.handle, stream));
    body();
    cuda::must(cudaEventRecord(to.handle, stream));
    cuda::must(cudaEventSynchronize(to.handle));
    float ms = 0;
    cuda::must(cudaEventElapsedTime(&ms, from.handle, to.handle));
    best = std::max(best, 1000 / static_cast<double>(ms));
  }
  return best;
}

cudaDataType type_of(const Tensor& t) { return t.dtype() == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F; }

/// out [rows, n] = x [rows, k] · w [k, n], as the library's first choice does it. It counts columns first, so that to it this is out' = w' · x'.
class LibraryProduct {
 public:
  LibraryProduct(const Tensor& x, const Tensor& w, const Tensor& out, const Tensor& workspace) : workspace_(workspace) {
    must(cublasLtCreate(&handle_.handle));
    must(cublasLtMatmulDescCreate(&product_.handle, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    for (const auto& [matrix, tensor] : {std::pair(&w_, &w), {&x_, &x}, {&out_, &out}}) {
      must(cublasLtMatrixLayoutCreate(&matrix->handle, type_of(*tensor), static_cast<std::uint64_t>(tensor->size(1)), static_cast<std::uint64_t>(tensor->size(0)), tensor->size(1)));
    }
    Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference;
    const std::uint64_t bytes = workspace_.bytes();
    must(cublasLtMatmulPreferenceCreate(&preference.handle));
    must(cublasLtMatmulPreferenceSetAttribute(preference.handle, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    int found = 0;
    must(cublasLtMatmulAlgoGetHeuristic(handle_.handle, product_.handle, w_.handle, x_.handle, out_.handle, out_.handle, preference.handle, 1, &algorithm_, &found));
    if (found == 0) fail(Fault::rank, "cuBLASLt has no product {} · {} of {}", to_string(x.shape()), to_string(w.shape()), name_of(x.dtype()));
  }

  void operator()(const Tensor& x, const Tensor& w, const Tensor& out, cudaStream_t stream) const {
    const float one = 1, zero = 0;
    must(cublasLtMatmul(handle_.handle, product_.handle, &one, w.raw(), w_.handle, x.raw(), x_.handle, &zero, out.raw(), out_.handle, out.raw(), out_.handle, &algorithm_.algo,
                        workspace_.raw(), workspace_.bytes(), stream));
  }

 private:
  Tensor workspace_;
  Owned<cublasLtHandle_t, cublasLtDestroy> handle_;
  Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> product_;
  Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy> w_, x_, out_;
  cublasLtMatmulHeuristicResult_t algorithm_{};
};

constexpr std::int64_t workspace_bytes = std::int64_t{32} << 20;

}  // namespace

Limits CudaDevice::measure_limits(DType dtype, const std::function<void()>& meet) {
  Limits limits;
  {
    const Tensor from = empty(DType::u8, {std::int64_t{1} << 30}), to = empty(DType::u8, {std::int64_t{1} << 30});
    cuda::must(cudaMemsetAsync(from.raw(), 1, from.bytes(), stream_->handle));
    limits.bytes_per_s = 2 * static_cast<double>(from.bytes()) *
                         best_rate(stream_->handle, meet, [&] { cuda::must(cudaMemcpyAsync(to.raw(), from.raw(), from.bytes(), cudaMemcpyDefault, stream_->handle)); });
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
  const LibraryProduct product(x, y, out, empty(DType::u8, {workspace_bytes}));
  const auto n = static_cast<double>(size);
  limits.flops_per_s = 2 * n * n * n * best_rate(stream_->handle, meet, [&] { product(x, y, out, stream_->handle); });
  return limits;
}

Device::Product CudaDevice::library_product(const Tensor& x, const Tensor& w, const Tensor& out) {
  const auto product = std::make_shared<LibraryProduct>(x, w, out, empty(DType::u8, {workspace_bytes}));
  return [product, stream = stream_->handle](const Tensor& x_, const Tensor& w_, const Tensor& out_) { (*product)(x_, w_, out_, stream); };
}

}  // namespace kvmesh::cuda
