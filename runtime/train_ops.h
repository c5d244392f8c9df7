// What training needs of a device beyond device.h: gradients of its operations, the loss, and the optimizers' steps. Rows, threads and
// order as there: a result's bits depend on the operands alone. Gradients of activations have the activations' dtype; gradients of
// weights, optimizer state and sums are float32. Shapes: T tokens, D width, H query and K key heads of h elements, V vocabulary.
#pragma once

#include "runtime/device.h"
#include "runtime/train_structs.h"

namespace kvmesh {

class TrainOps {
 public:
  virtual ~TrainOps() = default;

  /// body(i) for i = 0 … n - 1, in any order, up to parallel() at once; an operation within has one thread. For many small things.
  virtual void each(std::int64_t n, const std::function<void(std::int64_t i)>& body) = 0;
  virtual int parallel() const = 0;

  /// Packs source [k, n] (f32, or the weight's dtype) for linear(); `target` has its size, dtype and memory.
  virtual void pack(const Tensor& source, const Weight& target) = 0;
  /// out [c, r] = x [r, c]ᵀ; out's dtype is x's or bf16.
  virtual void transpose(const Tensor& x, const Tensor& out) = 0;
  /// f32 → bf16, or a copy.
  virtual void convert(const Tensor& x, const Tensor& out) = 0;
  /// Columns of a symmetric matrix out f32 [n, n] and their mirror image: out[i, from + j] = out[from + j, i] = columns [from + b, b][i, j], j < b; where both lie in
  /// the diagonal's block, columns' own.
  virtual void mirror(const Tensor& columns, std::int64_t from, const Tensor& out) = 0;
  virtual void zero(const Tensor& x) = 0;

  /// dx f32 [T, D] += gradient that reaches x through rms_norm(x); `rounded`, if defined, is the sum as bf16.
  virtual void rms_norm_backward(const Tensor& x, const Tensor& dy, float eps, const Tensor& dx, const Tensor& rounded) = 0;
  /// dq [T, H·h], dk and dv [T, K·h] → dqkv [T, (H + 2·K)·h]; qkv is what norm_rope_append was given.
  virtual void norm_rope_backward(const Tensor& qkv, const Tensor& dq, const Tensor& dk, const Tensor& dv, const Pass& pass, const LayerCache& cache,
                                  const Tensor& rope, float eps, const Tensor& dqkv) = 0;
  /// out and dout [T, H·h] of attention(q, pass, cache, window); dq [T, H·h], dk and dv [T, K·h]. Every segment begins its row, and none wraps around the ring.
  virtual void attention_backward(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out, const Tensor& dout,
                                  const Tensor& dq, const Tensor& dk, const Tensor& dv) = 0;
  /// dhidden *= 2 · sqrt(hidden), where hidden = max(x, 0)².
  virtual void relu_squared_backward(const Tensor& hidden, const Tensor& dhidden) = 0;
  /// The vocabulary comes in parts: logits f32 [R, C] of its entries `first` …, after the soft cap. sums f32 [R, 3] become, over this part and those before
  /// it (none where `first` is 0): the largest logit, the sum of exp(logit - the largest), and the target's logit once its part has come; targets i32 [R].
  /// -log p(target) = log(sum) + largest - the target's.
  virtual void softmax_sums(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums) = 0;
  /// dlogits [R, C] of such a part, given the sums over all of them: the gradient of -scale · log p(target) with respect to logits before the cap (0: none);
  /// zeros for a target of -1. dlogits may be `logits` itself.
  virtual void cross_entropy_backward(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums, float cap, float scale, const Tensor& dlogits) = 0;
  /// table f32 [V, D] += rows of dx f32 [T, D], in the order of the tokens; ids within the table.
  virtual void scatter_rows(const Tensor& ids, const Tensor& dx, const Tensor& table) = 0;

  /// inout += x, both f32 in the host's memory, where ranks sum what they exchange.
  virtual void add_on_host(const Tensor& inout, const Tensor& x) = 0;

  // On f32 tensors of one size.
  static constexpr std::int64_t square_block = 1 << 14;
  /// sums f64 [ceil(x.numel() / square_block)]: of the squares of each block.
  virtual void square_sums(const Tensor& x, const Tensor& sums) = 0;
  /// All blocks' sums added in their order; the host waits for it.
  virtual double sum_squares(const Tensor& x) = 0;
  virtual void adamw(const AdamwStep& step, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v) = 0;
  /// m = beta · m + (1 - beta) · g; update: Nesterov's.
  virtual void momentum(const MuonStep& step, const Tensor& g, const Tensor& m, const Tensor& update) = 0;
  /// p -= rate · update, and decay.
  virtual void apply(const Decay& decay, float rate, const Tensor& p, const Tensor& update) = 0;
  /// out = a · x + b · out.
  virtual void scale_add(float a, const Tensor& x, float b, const Tensor& out) = 0;
};

}  // namespace kvmesh
