// The loss of a micro-batch and its gradient: the forward pass of model/gpt.h, operation for operation, with what the backward pass
// needs kept (or computed again: recompute), and that pass.
#pragma once

#include "comm/sharding.h"
#include "model/gpt.h"
#include "model/train/batch.h"
#include "model/train/parameters.h"
#include "runtime/train_ops.h"

#include <algorithm>
#include <functional>
#include <vector>

namespace kvmesh {

/// The sum of -log p(target) over a batch's tokens that have a target, and how many have.
struct LossSum {
  double nats = 0;
  std::int64_t tokens = 0;
};

class Backprop {
 public:
  static constexpr std::int64_t head_tokens = 1024;     ///< that meet the vocabulary at once,
  static constexpr std::int64_t vocabulary_part = 8192;  ///< and at most so many of its entries
  /// Logits of that many tokens are kept for the backward pass while they fit into so many bytes; those of the other parts are computed again.
  static constexpr std::int64_t logit_bytes = std::int64_t{256} << 20;
  /// How the head is cut: the logits of `slots` parts of `part` entries are in memory at once.
  struct HeadCut {
    std::int64_t tokens, part, parts, slots;
  };
  static HeadCut head_cut(const ModelConfig& config, std::int64_t tokens, bool recompute);

  struct Options {
    std::int64_t rows = 1;   ///< of a micro-batch, at most
    bool recompute = false;  ///< keep only what enters each block, and compute the rest again; of the logits one part
  };
  /// `dtype`: of weights in products, and of activations. `device` outlives it.
  Backprop(const ModelConfig& config, DType dtype, Device& device, const ParamLayout& layout, const Options& options);

  /// Packs new values [layout.size], which lie in the device's memory as gradients do; the next passes use them.
  void set_parameters(const Tensor& vector);

  /// Logits are those of Gpt::forward with the same tokens.
  LossSum loss(const TrainBatch& batch);
  /// Writes the gradient of scale · nats to all of `gradient` f32 [layout.size], the layout's last matrix first; `complete`, if given, is told of each when what
  /// writes it has been enqueued.
  using Complete = std::function<void(const Matrix& matrix)>;
  LossSum loss_and_gradient(const TrainBatch& batch, float scale, const Tensor& gradient, const Complete& complete = {});

  /// The model with the present parameters, sharing their memory.
  Gpt gpt() const { return {config_, dtype_, weights_, device_}; }

  /// Floating-point operations of one token's step, forward and backward, attention with `keys` keys on average included.
  static double flops_per_token(const ModelConfig& config, double keys);

 private:
  struct Turned {  // weights with k and n exchanged, for gradients of what they multiply
    Weight qkv, wo, fc1, fc2;
  };
  struct Activations {
    Tensor qkv, q, attended, middle, hidden;  // [T, (H + 2·K)·h], [T, H·h] twice, [T, D] after attention, [T, 4·D]
    LayerCache cache;
  };

  Weight packed(const Tensor& x);
  const Activations& activations(std::size_t layer) const { return kept_[recompute_ ? 0 : layer]; }
  void block_forward(std::size_t layer, const Tensor& x);
  void block_backward(std::size_t layer, const Tensor& gradient, const Complete& complete);
  Tensor turned(const Tensor& x);
  void weight_gradient(const Tensor& x, const Weight& dy, const Tensor& out) { device_.linear(turned(x), dy, Epilogue::none, out); }
  Range entries(std::int64_t part) const { return {part * cut_.part, std::min((part + 1) * cut_.part, config_.vocab_size)}; }
  Tensor logits(const Tensor& normed, std::int64_t part, bool again);
  void head_forward(std::int64_t from, std::int64_t to);
  void head_backward(std::int64_t from, std::int64_t to, float scale, const Tensor& gradient);
  LossSum nats_of(const TrainBatch& batch);
  LossSum run(const TrainBatch& batch, float scale, const Tensor* gradient, const Complete& complete);

  ModelConfig config_;
  DType dtype_;
  Device& device_;
  TrainOps& ops_;
  const ParamLayout& layout_;
  bool recompute_;
  std::int64_t capacity_;  // tokens of a micro-batch
  HeadCut cut_;
  std::vector<ModelConfig::Layer> layers_;
  Tensor rope_;
  GptWeights weights_;
  std::vector<Turned> turned_;
  std::vector<Weight> turned_head_;  // of each part of the vocabulary
  std::vector<Activations> kept_;
  std::vector<Tensor> inputs_;  // [L + 1] of [capacity, D]: what enters each block, and what leaves the last one
  // Of one pass or less; each [capacity, …].
  Tensor normed_, dx_, dx_low_, dwide_, dq_, dk_, dv_, dheads_, dnormed_;
  Tensor transposed_, packed_, turned_source_;
  Tensor logits_, dlogits_, dfinal_;      // [slots][tokens, part] and [tokens, part] of cut_; f32 [its tokens, D], a sum over the parts
  Tensor targets_, sums_, host_sums_;     // i32 [capacity]; f32 [capacity, 3] of softmax_sums
  Pass pass_;
  std::int64_t tokens_ = 0;
};

}  // namespace kvmesh
