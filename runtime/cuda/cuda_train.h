// Training's operations on a GPU.
#pragma once

#include "runtime/cuda/attention_cudnn.h"
#include "runtime/cuda/train_kernels.h"
#include "runtime/train_ops.h"

namespace kvmesh::cuda {

class CudaTrainOps final : public TrainOps {
 public:
  /// All outlive it; `queue` and `cudnn` are the device's.
  CudaTrainOps(Device& device, Queue& queue, const std::unique_ptr<CudnnAttention>& cudnn) : device_(device), queue_(queue), cudnn_(cudnn) {}

  void each(std::int64_t n, const std::function<void(std::int64_t i)>& body) override;
  int parallel() const override { return 1; }
  void pack(const Tensor& source, const Weight& target) override;
  void transpose(const Tensor& x, const Tensor& out) override;
  void convert(const Tensor& x, const Tensor& out) override;
  void mirror(const Tensor& columns, std::int64_t from, const Tensor& out) override;
  void zero(const Tensor& x) override;
  void rms_norm_backward(const Tensor& x, const Tensor& dy, float eps, const Tensor& dx, const Tensor& rounded) override;
  void norm_rope_backward(const Tensor& qkv, const Tensor& dq, const Tensor& dk, const Tensor& dv, const Pass& pass, const LayerCache& cache,
                          const Tensor& rope, float eps, const Tensor& dqkv) override;
  void attention_backward(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out, const Tensor& dout,
                          const Tensor& dq, const Tensor& dk, const Tensor& dv) override;
  void relu_squared_backward(const Tensor& hidden, const Tensor& dhidden) override;
  void softmax_sums(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums) override;
  void cross_entropy_backward(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums, float cap, float scale, const Tensor& dlogits) override;
  void scatter_rows(const Tensor& ids, const Tensor& dx, const Tensor& table) override;
  void add_on_host(const Tensor& inout, const Tensor& x) override;
  void square_sums(const Tensor& x, const Tensor& sums) override;
  double sum_squares(const Tensor& x) override;
  void adamw(const AdamwStep& step, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v) override;
  void momentum(const MuonStep& step, const Tensor& g, const Tensor& m, const Tensor& update) override;
  void apply(const Decay& decay, float rate, const Tensor& p, const Tensor& update) override;
  void scale_add(float a, const Tensor& x, float b, const Tensor& out) override;

 private:
  /// False: it is not for cuDNN, and nothing has been done. `places`: the cache's.
  bool attention_backward_by_cudnn(const AttentionBackwardTask& task, std::span<const Segment> segments, std::int64_t places);

  Device& device_;
  Queue& queue_;
  const std::unique_ptr<CudnnAttention>& cudnn_;  // null: our own attention
  Tensor facts_, cudnn_memory_;  // attention_backward's, f32 and u8, kept for their memory
};

}  // namespace kvmesh::cuda
