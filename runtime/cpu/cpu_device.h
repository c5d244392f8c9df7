// The CPU as a device: host memory, a thread pool, and the kernels of the best instruction set.
#pragma once

#include "runtime/cpu/cpu_train.h"
#include "runtime/device.h"

#include <vector>

namespace kvmesh::cpu {

class CpuDevice final : public Device {
 public:
  /// `threads` 0: as many as this process may run on.
  explicit CpuDevice(int threads);

  std::string describe() const override;
  std::string kind() const override;
  Limits measure_limits(DType dtype, const std::function<void()>& meet) override;
  Tensor empty(DType dtype, Shape shape) override { return host_tensor(dtype, shape); }
  void copy(const Tensor& source, const Tensor& target) override;
  Tensor resident(const Tensor& host) override { return host; }
  Tensor counterpart(const Tensor& host) override { return host; }
  TrainOps& train_ops() override { return train_ops_; }

 private:
  Pass do_prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const Tensor& from) override;
  std::size_t do_weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize) const override;
  void do_pack_weight(const Tensor& source, DType dtype, Quantize quantize, void* target) const override;
  void do_gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) override;
  void do_add_positions(const Tensor& table, const Pass& pass, const Tensor& x) override;
  void do_norm(const Tensor& x, const Norm& norm, const Tensor& out) override;
  void do_swiglu(const Tensor& x, const Tensor& out) override;
  void do_linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap, std::int64_t column) override;
  void do_norm_rope_append(const Tensor& qkv, const Pass& pass, const Tensor& rope, const HeadNorm& norm, const Tensor& q,
                           const LayerCache& cache) override;
  void do_attention(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out) override;
  void do_copy_rows(const LayerCache& cache, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to,
                    std::int64_t count) override;
  void do_sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out) override;

  /// Queries of a segment and one key head, from token `first` of the segment on.
  struct AttentionPart {
    const Segment* segment;
    std::int64_t head, first;
  };

  const Kernels& kernels_;
  mutable ThreadPool pool_;
  std::vector<std::int32_t> ids_;               // of the prepared pass, where its tokens came from a tensor
  std::vector<AttentionPart> attention_parts_;  // of the call in progress; kept for its memory
  CpuTrainOps train_ops_;
};

}  // namespace kvmesh::cpu
