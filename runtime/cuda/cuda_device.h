// A GPU as a device: its memory, one stream on which everything happens in order, and the kernels.
#pragma once

#include "runtime/cuda/attention_cudnn.h"
#include "runtime/cuda/cuda_train.h"
#include "runtime/cuda/kernels.h"
#include "runtime/device.h"

#include <cuda_runtime.h>

#include <map>
#include <memory>
#include <optional>
#include <source_location>
#include <tuple>
#include <vector>

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
  Limits measure_limits(DType dtype, const std::function<void()>& meet) override;
  Product library_product(const Tensor& x, const Tensor& w, const Tensor& out) override;
  void begin_range(const char* name) override;
  void end_range() override;
  void* queue() const override { return stream_->handle; }
  std::int64_t free_bytes() const override;
  Tensor empty(DType dtype, Shape shape) override;
  void copy(const Tensor& source, const Tensor& target) override;
  Tensor resident(const Tensor& host) override;
  std::unique_ptr<Download> download(const Tensor& source) override;
  Tensor counterpart(const Tensor& host) override { return empty(host.dtype(), host.shape()); }
  void run(const Pass& pass, const Work& work, const std::function<void()>& body) override;
  TrainOps& train_ops() override { return train_ops_; }

 private:
  /// Host memory that copies read or write behind the host's back: it is the host's again when `done` has come.
  struct Pinned {
    Tensor memory;  // u8
    cudaEvent_t done = nullptr;
    Pinned() { must(cudaEventCreateWithFlags(&done, cudaEventDisableTiming)); }
    ~Pinned() { cudaEventSynchronize(done), cudaEventDestroy(done); }
    Pinned(const Pinned&) = delete;
    Pinned& operator=(const Pinned&) = delete;
    /// At least so many bytes, the host's.
    std::byte* claim(std::size_t bytes);
  };

  /// What the host writes for kernels to read: filled in pinned memory and uploaded in one piece. Two take turns: while the one for the step in progress
  /// waits for its turn on the stream, the next can be filled. Kernels always read the same place, which graphs remember.
  struct Upload {
    Pinned pinned[2];
    int turn = 0;
    Tensor device{};  // u8
  };

  class PinnedDownload;
  using Spares = std::vector<std::unique_ptr<Pinned>>;

  /// A pass's kernels, recorded: how many tokens and wanted rows, on what, and whether rows are left to our own attention beside cuDNN's.
  struct Graph {
    cudaGraphExec_t exec = nullptr;
    ~Graph() {
      if (exec) cudaGraphExecDestroy(exec);
    }
  };
  using GraphKey = std::tuple<Work, std::int64_t, std::int64_t, bool>;
  static constexpr std::size_t most_graphs = 256;  ///< then all are forgotten

  Pass do_prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const Tensor& from) override;
  std::size_t do_weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize) const override;
  void do_pack_weight(const Tensor& source, DType dtype, Quantize quantize, void* target) const override;
  /// Whether cuDNN attends and leaves rows over, for their keys wrap around the ring's end.
  bool leaves_rows(std::span<const Segment> segments, std::int64_t size) const;
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

  void attend(const AttentionTask& task);
  /// False: it is not for cuDNN. `places`: the cache's. What cuDNN leaves over of a pass is attended by our own kernels after it.
  bool attend_by_cudnn(AttentionTask task, std::span<const Segment> segments, std::int64_t places);
  SdpaRows sdpa_rows_of(const RingTask& ring, std::int64_t window, std::int64_t segments, std::int64_t rows);
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
  std::shared_ptr<Spares> spares_ = std::make_shared<Spares>();  // of downloads that have been let go of
  std::map<GraphKey, Graph> graphs_;  // of the addresses that memory has now: grow() forgets them
  Tensor partial_, arrived_;  // attention's; arrived_ is zeros between kernels
  std::unique_ptr<CudnnAttention> cudnn_;  // null: our own attention
  Tensor sdpa_rows_, sdpa_workspace_;
  /// What sdpa_rows_ holds of the pass that was prepared last: window, slots, heads, key heads, head_dim, rows.
  using RowsKey = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
  std::optional<RowsKey> rows_of_;
  CudaTrainOps train_ops_{*this, queue_, cudnn_};
};

}  // namespace kvmesh::cuda
