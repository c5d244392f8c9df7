// Tensors turned into the tasks of training's kernels.
#include "runtime/cuda/cuda_train.h"

#include "runtime/cuda/cuda_device.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace kvmesh::cuda {
namespace {

bool is_bf16(const Tensor& t) {
  kvmesh::check(t.dtype() == DType::f32 || t.dtype() == DType::bf16, "{}{} is neither float32 nor bfloat16", name_of(t.dtype()), to_string(t.shape()));
  return t.dtype() == DType::bf16;
}

void check_sizes(std::int64_t size, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors) kvmesh::check(t->numel() == size, "a tensor{} has not {} elements", to_string(t->shape()), size);
}

LossTask loss_task(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums) {
  check_sizes(logits.size(0), {&targets});
  check_sizes(3 * logits.size(0), {&sums});
  return {logits.data<float>(), targets.data<std::int32_t>(), sums.data<float>(), logits.size(0), logits.size(1), first};
}

}  // namespace

void CudaTrainOps::each(std::int64_t n, const std::function<void(std::int64_t i)>& body) {
  for (std::int64_t i = 0; i < n; ++i) body(i);
}

void CudaTrainOps::pack(const Tensor& source, const Weight& w) {
  check_sizes(w.k * w.n, {&source});
  kvmesh::check(w.quantize == Quantize::none, "pack: integers are packed by the host");
  must(cuda::pack(queue_, source.raw(), is_bf16(source), {w.dtype == DType::bf16, false, w.k, w.n}, w.data.raw()));
  queue_.weights_written = true;
}

void CudaTrainOps::transpose(const Tensor& x, const Tensor& out) {
  check_sizes(x.numel(), {&out});
  if (x.numel() > 0) must(cuda::transpose(queue_, x.raw(), is_bf16(x), x.size(0), x.numel() / x.size(0), out.raw(), is_bf16(out)));
}

void CudaTrainOps::convert(const Tensor& x, const Tensor& out) {
  check_sizes(x.numel(), {&out});
  if (x.numel() == 0) return;
  if (x.dtype() == out.dtype()) must(cudaMemcpyAsync(out.raw(), x.raw(), x.bytes(), cudaMemcpyDefault, queue_.stream));
  else must(cuda::round_to_bf16(queue_, x.data<float>(), out.data<bfloat16>(), x.numel()));
}

void CudaTrainOps::mirror(const Tensor& columns, std::int64_t from, const Tensor& out) {
  check_sizes((from + columns.size(1)) * columns.size(1), {&columns});
  must(cuda::mirror(queue_, columns.data<float>(), from, columns.size(1), out.data<float>(), out.size(1)));
}

void CudaTrainOps::zero(const Tensor& x) {
  if (x.bytes() > 0) must(cudaMemsetAsync(x.raw(), 0, x.bytes(), queue_.stream));
}

void CudaTrainOps::rms_norm_backward(const Tensor& x, const Tensor& dy, float eps, const Tensor& dx, const Tensor& rounded) {
  check_sizes(x.numel(), {&dy, &dx});
  kvmesh::check(x.dtype() == dy.dtype(), "rms_norm_backward: x is {}, dy {}", name_of(x.dtype()), name_of(dy.dtype()));
  must(norm_backward(queue_, {x.raw(), dy.raw(), dx.data<float>(), rounded.defined() ? rounded.data<bfloat16>() : nullptr, x.size(0), x.size(1), eps, is_bf16(x)}));
}

void CudaTrainOps::norm_rope_backward(const Tensor& qkv, const Tensor& dq, const Tensor& dk, const Tensor& dv, const Pass& pass, const LayerCache& cache,
                                      const Tensor& rope, float eps, const Tensor& dqkv) {
  check_sizes(qkv.numel(), {&dqkv});
  must(append_backward(queue_, {ring_of(dq, pass, cache), qkv.raw(), dq.raw(), dk.raw(), dv.raw(), dqkv.raw(), rope.defined() ? rope.data<float>() : nullptr, eps}));
}

void CudaTrainOps::attention_backward(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out, const Tensor& dout,
                                      const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const RingTask ring = ring_of(q, pass, cache);
  check_sizes(q.numel(), {&out, &dout, &dq});
  kvmesh::check(ring.head_dim <= largest_head, "attention_backward: a head_dim of {}; with CUDA {} is the largest", ring.head_dim, largest_head);
  std::int64_t longest = 0;
  for (const Segment& s : pass.segments) {
    kvmesh::check(s.begin == s.start && s.begin % ring.size + s.count <= ring.size, "attention_backward: a segment of {} tokens does not lie in a ring of {} at once", s.count, ring.size);
    longest = std::max<std::int64_t>(longest, s.count);
  }
  if (longest == 0) return;
  AttentionBackwardTask task{ring, q.raw(), out.raw(), dout.raw(), dq.raw(), dk.raw(), dv.raw(), nullptr, std::ssize(pass.segments), longest, window};
  if (cudnn_ && attention_backward_by_cudnn(task, pass.segments, cache.k.size(0))) return;
  const std::int64_t floats = q.size(0) * ring.heads * 3;
  if (!facts_.defined() || facts_.numel() < floats) facts_ = device_.empty(DType::f32, {floats});
  task.facts = facts_.data<float>();
  must(cuda::attention_backward(queue_, task));
}

void CudaTrainOps::relu_squared_backward(const Tensor& hidden, const Tensor& dhidden) {
  check_sizes(hidden.numel(), {&dhidden});
  must(cuda::relu_squared_backward(queue_, hidden.raw(), dhidden.raw(), is_bf16(hidden), hidden.numel()));
}

void CudaTrainOps::softmax_sums(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums) {
  must(cuda::softmax_sums(queue_, loss_task(logits, targets, first, sums)));
}

void CudaTrainOps::cross_entropy_backward(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums, float cap, float scale, const Tensor& dlogits) {
  check_sizes(logits.numel(), {&dlogits});
  must(cuda::cross_entropy_backward(queue_, loss_task(logits, targets, first, sums), cap, scale, dlogits.raw(), is_bf16(dlogits)));
}

void CudaTrainOps::scatter_rows(const Tensor& ids, const Tensor& dx, const Tensor& table) {
  check_sizes(ids.size(0) * table.size(1), {&dx});
  must(cuda::scatter_rows(queue_, ids.data<std::int32_t>(), dx.data<float>(), ids.size(0), table.size(1), table.data<float>()));
}

void CudaTrainOps::add_on_host(const Tensor& inout, const Tensor& x) {
  check_sizes(inout.numel(), {&x});
  float* const to = inout.data<float>();
  const float* const from = x.data<float>();
  for (std::int64_t i = 0; i < x.numel(); ++i) to[i] = to[i] + from[i];
}

void CudaTrainOps::square_sums(const Tensor& x, const Tensor& sums) {
  check_sizes((x.numel() + square_block - 1) / square_block, {&sums});
  must(cuda::square_sums(queue_, x.data<float>(), x.numel(), square_block, sums.data<double>()));
}

double CudaTrainOps::sum_squares(const Tensor& x) {
  const Tensor sums = host_tensor(DType::f64, {(x.numel() + square_block - 1) / square_block}), there = device_.counterpart(sums);
  square_sums(x, there);
  device_.copy(there, sums);
  const std::span<const double> all = sums.span<double>();
  return std::accumulate(all.begin(), all.end(), 0.0);
}

void CudaTrainOps::adamw(const AdamwStep& step, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v) {
  check_sizes(p.numel(), {&g, &m, &v});
  must(cuda::adamw(queue_, step, p.data<float>(), g.data<float>(), m.data<float>(), v.data<float>(), p.numel()));
}

void CudaTrainOps::momentum(const MuonStep& step, const Tensor& g, const Tensor& m, const Tensor& update) {
  check_sizes(g.numel(), {&m, &update});
  must(cuda::momentum(queue_, step, g.data<float>(), m.data<float>(), update.data<float>(), g.numel()));
}

void CudaTrainOps::apply(const Decay& decay, float rate, const Tensor& p, const Tensor& update) {
  check_sizes(p.numel(), {&update});
  must(cuda::apply(queue_, decay, rate, p.data<float>(), update.data<float>(), p.numel()));
}

void CudaTrainOps::scale_add(float a, const Tensor& x, float b, const Tensor& out) {
  check_sizes(x.numel(), {&out});
  must(cuda::scale_add(queue_, a, x.data<float>(), b, out.data<float>(), x.numel()));
}

}  // namespace kvmesh::cuda
