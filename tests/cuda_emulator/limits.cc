// What an emulated GPU can do is nothing that anyone wants to know; the products of its library are plain loops.
#include "runtime/cuda/cuda_device.h"

namespace kvmesh::cuda {
namespace {

float at(const Tensor& t, std::int64_t i) { return t.dtype() == DType::bf16 ? float{t.data<bfloat16>()[i]} : t.data<float>()[i]; }

}  // namespace

Limits CudaDevice::measure_limits(DType, const std::function<void()>&) { return {1, 1}; }

Device::Product CudaDevice::library_product(const Tensor&, const Tensor&, const Tensor&) {
  return [stream = stream_->handle](const Tensor& x, const Tensor& w, const Tensor& out) {
    stream->enqueue([=] {
      for (std::int64_t i = 0; i < out.size(0); ++i) {
        for (std::int64_t j = 0; j < out.size(1); ++j) {
          float sum = 0;
          for (std::int64_t k = 0; k < x.size(1); ++k) sum += at(x, i * x.size(1) + k) * at(w, k * w.size(1) + j);
          if (out.dtype() == DType::bf16) out.data<bfloat16>()[i * out.size(1) + j] = bfloat16(sum);
          else out.data<float>()[i * out.size(1) + j] = sum;
        }
      }
    });
  };
}

}  // namespace kvmesh::cuda
