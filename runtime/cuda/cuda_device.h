// A GPU as a device: its memory, one stream on which everything happens in order, and the kernels.
#pragma once

#include "runtime/cuda/cuda_train.h"
#include "runtime/cuda/kernels.h"
#include "runtime/device.h"

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <source_location>
#include <tuple>

namespace kvmesh::cuda {

/// Throws unless the call succeeded.
void must(cudaError_t status, std::source_location where = std::source_location::current());

/// Owned: tensors hold it too, for their memory returns to it in the stream's order.
struct Stream {
  cudaStream_t handle = nullptr;
  Stream() { must(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }  // of the current GPU
  ~Stream() { cudaStreamDestroy(handle); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
};

/// What kernels are told of one layer's ring and a pass; q [T, H·h] says how many heads there are.
RingTask ring_of(const Tensor& q, const Pass& pass, const LayerCache& cache);

class CudaDevice final : public Device {
 public:
  explicit CudaDevice(const DeviceOptions& options);

  std::string describe() const override;
  std::string kind() const override;
  Limits measure_limits(DType dtype) override;
  void* queue() const override { return stream_->handle; }
  std::int64_t free_bytes() const override;
  Tensor empty(DType dtype, Shape shape) override;
  void copy(const Tensor& source, const Tensor& target) override;
  Tensor resident(const Tensor& host) override;
  Tensor counterpart(const Tensor& host) override { return empty(host.dtype(), host.shape()); }
  Pass prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted) override;
  void run(const Pass& pass, const Work& work, const std::function<void()>& body) override;
  TrainOps& train_ops() override { return train_ops_; }

 private:
  /// What the host writes for kernels to read: filled in pinned memory, uploaded in one piece, and not filled again before that is done.
  struct Upload {
    Tensor pinned, device;  // u8
    cudaEvent_t done = nullptr;
    ~Upload() { cudaEventDestroy(done); }
  };

  /// A pass's kernels, recorded: how many tokens and wanted rows, on what.
  struct Graph {
    cudaGraphExec_t exec = nullptr;
    ~Graph() {
      if (exec) cudaGraphExecDestroy(exec);
    }
  };
  using GraphKey = std::tuple<Work, std::int64_t, std::int64_t>;
  static constexpr std::size_t most_graphs = 256;  ///< then all are forgotten

  std::size_t do_weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize) const override;
  void do_pack_weight(const Tensor& source, DType dtype, Quantize quantize, void* target) const override;
  void record(Graph& graph, const std::function<void()>& body);

  void do_gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) override;
  void do_add_positions(const Tensor& table, const Pass& pass, const Tensor& x) override;
  void do_norm(const Tensor& x, const Norm& norm, const Tensor& out) override;
  void do_swiglu(const Tensor& x, const Tensor& out) override;
  void do_linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap, std::int64_t column) override;
  void do_norm_rope_append(const Tensor& qkv, const Pass& pass, const Tensor& rope, const HeadNorm& norm, const Tensor& q, const LayerCache& cache) override;
  void do_attention(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out) override;
  void do_copy_rows(const LayerCache& cache, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to, std::int64_t count) override;
  void do_sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out) override;

  /// Pinned host memory of at least `bytes`, ready to be filled.
  std::byte* begin_upload(Upload& upload, std::size_t bytes);
  /// The first `bytes` of it to the device.
  void end_upload(Upload& upload, std::size_t bytes);
  /// Grows `memory` to at least `bytes`; what was in it is lost.
  void grow(Tensor& memory, std::size_t bytes);

  int gpu_;
  cudaDeviceProp properties_;
  std::shared_ptr<Stream> stream_;
  Queue queue_;
  Upload pass_upload_, rows_upload_;
  std::map<GraphKey, Graph> graphs_;  // of the addresses that memory has now: grow() forgets them
  Tensor partial_, arrived_;  // attention's; arrived_ is zeros between kernels
  CudaTrainOps train_ops_{*this, queue_};
};

}  // namespace kvmesh::cuda
