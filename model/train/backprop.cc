#include "model/train/backprop.h"

#include <algorithm>
#include <cmath>

namespace kvmesh {
namespace {

/// The first tokens · columns elements of a buffer, as rows.
Tensor rows_of(const Tensor& buffer, std::int64_t rows, std::int64_t columns) {
  return buffer.view({buffer.numel()}).slice(0, rows * columns).view({rows, columns});
}

Weight make_weight(Device& device, DType dtype, std::int64_t k, std::int64_t n) {
  return {k, n, dtype, device.empty(DType::u8, {static_cast<std::int64_t>(device.weight_bytes(dtype, k, n))})};
}

}  // namespace

Backprop::Backprop(const ModelConfig& config, DType dtype, Device& device, const ParamLayout& layout, const Options& options)
    : config_(config),
      dtype_(dtype),
      device_(device),
      ops_(device.train_ops()),
      layout_(layout),
      recompute_(options.recompute),
      capacity_(options.rows * config.seqlen),
      head_tokens_(std::min(capacity_, head_tokens)),
      layers_(config.layers()),
      rope_(rope_table(device, config)) {
  const std::int64_t D = config.d_emb, h = config.head_dim(), heads = config.q_heads * h, kv = config.kv_heads * h, V = config.vocab_size, T = capacity_;
  const auto empty = [&](std::int64_t rows, std::int64_t columns) { return device.empty(dtype, {rows, columns}); };
  weights_.embed = empty(V, D);
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    weights_.blocks.push_back({make_weight(device, dtype, D, heads + 2 * kv), make_weight(device, dtype, heads, D), make_weight(device, dtype, D, 4 * D),
                               make_weight(device, dtype, 4 * D, D)});
    turned_.push_back({make_weight(device, dtype, heads + 2 * kv, D), make_weight(device, dtype, D, heads), make_weight(device, dtype, 4 * D, D),
                       make_weight(device, dtype, D, 4 * D)});
  }
  weights_.lm_head = make_weight(device, dtype, D, V);
  turned_head_ = make_weight(device, dtype, V, D);

  const Shape ring = {options.rows, config.kv_heads, config.seqlen, h};
  for (std::int64_t i = 0; i < (recompute_ ? 1 : config.num_layers); ++i) {
    kept_.push_back({empty(T, heads + 2 * kv), empty(T, heads), empty(T, heads), empty(T, D), empty(T, 4 * D), {device.empty(dtype, ring), device.empty(dtype, ring)}});
  }
  for (std::int64_t i = 0; i <= config.num_layers; ++i) inputs_.push_back(empty(T, D));
  normed_ = empty(T, D);
  dx_ = device.empty(DType::f32, {T, D});
  dx_low_ = dtype == DType::f32 ? dx_ : empty(T, D);
  dwide_ = empty(T, 4 * D);
  dq_ = empty(T, heads);
  dk_ = empty(T, kv);
  dv_ = empty(T, kv);
  dheads_ = empty(T, heads + 2 * kv);
  dnormed_ = empty(T, std::max(D, heads));
  transposed_ = empty(T, 4 * D);
  packed_ = device.empty(DType::u8, {static_cast<std::int64_t>(std::max(device.weight_bytes(dtype, T, 4 * D), device.weight_bytes(dtype, head_tokens_, V)))});
  logits_ = device.empty(DType::f32, {head_tokens_, V});
  dlogits_ = empty(head_tokens_, V);
  losses_ = device.empty(DType::f64, {head_tokens_});
  turned_source_ = empty(std::max(V, 4 * D), D);
}

double Backprop::flops_per_token(const ModelConfig& c, double keys) {
  const auto D = static_cast<double>(c.d_emb), heads = static_cast<double>(c.q_heads * c.head_dim()), kv = static_cast<double>(c.kv_heads * c.head_dim());
  const double block = D * (heads + 2 * kv) + heads * D + 8 * D * D;
  return static_cast<double>(c.num_layers) * (6 * block + 12 * keys * heads) + 6 * D * static_cast<double>(c.vocab_size);
}

void Backprop::set_parameters(const Tensor& vector) {
  const auto set = [&](const Matrix& m, const Weight& weight, const Weight& turned) {
    const Tensor values = layout_.of(m, vector);
    ops_.pack(values, weight);
    const Tensor source = rows_of(turned_source_, m.cols, m.rows);
    ops_.transpose(values, source);
    ops_.pack(source, turned);
  };
  auto m = layout_.matrices.begin();
  ops_.convert(layout_.of(*m++, vector), weights_.embed);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const GptWeights::Block& block = weights_.blocks[i];
    set(*m++, block.qkv, turned_[i].qkv);
    set(*m++, block.wo, turned_[i].wo);
    set(*m++, block.fc1, turned_[i].fc1);
    set(*m++, block.fc2, turned_[i].fc2);
  }
  set(*m, weights_.lm_head, turned_head_);
}

void Backprop::block_forward(std::size_t i, const Tensor& x) {
  const std::int64_t T = tokens_, D = config_.d_emb;
  const auto eps = static_cast<float>(config_.norm_eps);
  const GptWeights::Block& block = weights_.blocks[i];
  const Activations& a = activations(i);
  const Tensor normed = normed_.slice(0, T), qkv = a.qkv.slice(0, T), q = a.q.slice(0, T), attended = a.attended.slice(0, T), middle = a.middle.slice(0, T),
               hidden = a.hidden.slice(0, T);
  device_.norm(x, {eps}, normed);
  device_.linear(normed, block.qkv, Epilogue::none, qkv);
  device_.norm_rope_append(qkv, pass_, layers_[i].rope ? rope_ : Tensor(), {eps}, q, a.cache);
  device_.attention(q, pass_, a.cache, layers_[i].window, attended);
  device_.copy(x, middle);
  device_.linear(attended, block.wo, Epilogue::add, middle);
  device_.norm(middle, {eps}, normed);
  device_.linear(normed, block.fc1, Epilogue::relu_squared, hidden);
  const Tensor out = rows_of(inputs_[i + 1], T, D);
  device_.copy(middle, out);
  device_.linear(hidden, block.fc2, Epilogue::add, out);
}

Weight Backprop::packed(const Tensor& x) {
  const Weight weight{x.size(0), x.size(1), dtype_, packed_.slice(0, static_cast<std::int64_t>(device_.weight_bytes(dtype_, x.size(0), x.size(1))))};
  ops_.pack(x, weight);
  return weight;
}

void Backprop::weight_gradient(const Tensor& x, const Weight& dy, const Tensor& out, bool more) {
  const Tensor turned = rows_of(transposed_, x.size(1), x.size(0));
  ops_.transpose(x, turned);
  device_.linear(turned, dy, more ? Epilogue::add : Epilogue::none, out);
}

void Backprop::block_backward(std::size_t i, const Tensor& gradient, const Complete& complete) {
  const std::int64_t T = tokens_, heads = config_.q_heads * config_.head_dim();
  const auto eps = static_cast<float>(config_.norm_eps);
  const Activations& a = activations(i);
  const Turned& turned = turned_[i];
  const Matrix* const m = &layout_.matrices[1 + 4 * i];  // qkv, wo, fc1, fc2
  const Tensor x = inputs_[i].slice(0, T), middle = a.middle.slice(0, T), hidden = a.hidden.slice(0, T), attended = a.attended.slice(0, T);
  const Tensor normed = normed_.slice(0, T), dx = dx_.slice(0, T), dx_low = dx_low_.slice(0, T), dhidden = dwide_.slice(0, T);
  const Tensor rounded = dtype_ == DType::bf16 ? dx_low : Tensor();

  weight_gradient(hidden, packed(dx_low), layout_.of(m[3], gradient));
  complete(m[3]);
  device_.linear(dx_low, turned.fc2, Epilogue::none, dhidden);
  ops_.relu_squared_backward(hidden, dhidden);
  device_.norm(middle, {eps}, normed);
  weight_gradient(normed, packed(dhidden), layout_.of(m[2], gradient));
  complete(m[2]);
  const Tensor dnormed = rows_of(dnormed_, T, config_.d_emb);
  device_.linear(dhidden, turned.fc1, Epilogue::none, dnormed);
  ops_.rms_norm_backward(middle, dnormed, eps, dx, rounded);

  weight_gradient(attended, packed(dx_low), layout_.of(m[1], gradient));
  complete(m[1]);
  const Tensor dattended = rows_of(dnormed_, T, heads), dq = dq_.slice(0, T), dk = dk_.slice(0, T), dv = dv_.slice(0, T), dqkv = dheads_.slice(0, T);
  device_.linear(dx_low, turned.wo, Epilogue::none, dattended);
  ops_.attention_backward(a.q.slice(0, T), pass_, a.cache, layers_[i].window, attended, dattended, dq, dk, dv);
  ops_.norm_rope_backward(a.qkv.slice(0, T), dq, dk, dv, pass_, a.cache, layers_[i].rope ? rope_ : Tensor(), eps, dqkv);
  device_.norm(x, {eps}, normed);
  weight_gradient(normed, packed(dqkv), layout_.of(m[0], gradient));
  complete(m[0]);
  device_.linear(dqkv, turned.qkv, Epilogue::none, dnormed);
  ops_.rms_norm_backward(x, dnormed, eps, dx, rounded);
}

LossSum Backprop::run(const TrainBatch& batch, float scale, const Tensor* gradient, const Complete& complete) {
  tokens_ = std::ssize(batch.ids);
  check(tokens_ > 0 && tokens_ <= capacity_ && batch.targets.size() == batch.ids.size(), "a micro-batch of {} tokens and {} targets, room for {}", tokens_,
        batch.targets.size(), capacity_);
  const std::int64_t T = tokens_;
  const auto eps = static_cast<float>(config_.norm_eps), cap = static_cast<float>(config_.logit_soft_cap);
  pass_ = device_.prepare(batch.ids, batch.segments, {});
  device_.gather_rows(weights_.embed, pass_.ids, inputs_[0].slice(0, T));
  for (std::size_t i = 0; i < layers_.size(); ++i) block_forward(i, inputs_[i].slice(0, T));

  // The head: a chunk of tokens at a time meets the vocabulary, forwards and backwards.
  LossSum sum;
  if (gradient) ops_.zero(dx_.slice(0, T));
  const Tensor targets(nullptr, const_cast<std::int32_t*>(batch.targets.data()), DType::i32, {T});
  for (std::int64_t from = 0; from < T; from += head_tokens_) {
    const std::int64_t to = std::min(T, from + head_tokens_), n = to - from;
    const Tensor x = inputs_.back().slice(from, to), normed = normed_.slice(0, n), logits = logits_.slice(0, n), losses = losses_.slice(0, n);
    const Tensor dlogits = gradient ? dlogits_.slice(0, n) : Tensor();
    device_.norm(x, {eps}, normed);
    device_.linear(normed, weights_.lm_head, cap > 0 ? Epilogue::soft_cap : Epilogue::none, logits, cap);
    ops_.cross_entropy(logits, targets.slice(from, to), cap, scale, losses, dlogits);
    for (const double nats : losses.span<double>()) sum.nats += nats;
    if (!gradient) continue;
    weight_gradient(normed, packed(dlogits), layout_.of(layout_.matrices.back(), *gradient), from > 0);
    const Tensor dnormed = rows_of(dnormed_, n, config_.d_emb);
    device_.linear(dlogits, turned_head_, Epilogue::none, dnormed);
    ops_.rms_norm_backward(x, dnormed, eps, dx_.slice(from, to), dtype_ == DType::bf16 ? dx_low_.slice(from, to) : Tensor());
  }
  for (const std::int32_t target : batch.targets) sum.tokens += target >= 0;
  if (!gradient) return sum;

  complete(layout_.matrices.back());
  for (std::size_t i = layers_.size(); i-- > 0;) {
    if (recompute_ && i + 1 < layers_.size()) block_forward(i, inputs_[i].slice(0, T));
    block_backward(i, *gradient, complete);
  }
  const Tensor embed = layout_.of(layout_.matrices.front(), *gradient);
  ops_.zero(embed);
  ops_.scatter_rows(pass_.ids, dx_.slice(0, T), embed);
  complete(layout_.matrices.front());
  return sum;
}

LossSum Backprop::loss(const TrainBatch& batch) { return run(batch, 0, nullptr, {}); }

LossSum Backprop::loss_and_gradient(const TrainBatch& batch, float scale, const Tensor& gradient, const Complete& complete) {
  return run(batch, scale, &gradient, [&](const Matrix& m) {
    if (complete) complete(m);
  });
}

}  // namespace kvmesh
