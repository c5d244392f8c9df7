// Results on their way to the host: through pinned memory, which is used again and again, so that neither asking for it nor copying makes the host wait.
#include "runtime/cuda/cuda_device.h"

#include <utility>

namespace kvmesh::cuda {

class CudaDevice::PinnedDownload final : public Download {
 public:
  PinnedDownload(const Tensor& source, std::shared_ptr<Spares> spares, cudaStream_t stream) : spares_(std::move(spares)) {
    if (!spares_->empty()) pinned_ = std::move(spares_->back()), spares_->pop_back();
    else pinned_ = std::make_unique<Pinned>();
    host_ = Tensor(nullptr, pinned_->claim(source.bytes()), source.dtype(), source.shape());
    if (source.bytes() > 0) must(cudaMemcpyAsync(host_.raw(), source.raw(), source.bytes(), cudaMemcpyDefault, stream));
    must(cudaEventRecord(pinned_->done, stream));
  }
  // Whoever gets the memory next claims it, which waits for this copy.
  ~PinnedDownload() override { spares_->push_back(std::move(pinned_)); }

  const Tensor& wait() override {
    must(cudaEventSynchronize(pinned_->done));
    return host_;
  }

 private:
  std::shared_ptr<Spares> spares_;
  std::unique_ptr<Pinned> pinned_;
  Tensor host_;
};

std::unique_ptr<Download> CudaDevice::download(const Tensor& source) { return std::make_unique<PinnedDownload>(source, spares_, stream_->handle); }

}  // namespace kvmesh::cuda
