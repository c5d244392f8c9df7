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
      cut_(head_cut(config, capacity_, recompute_)),
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
  for (std::int64_t part = 0; part < cut_.parts; ++part) turned_head_.push_back(make_weight(device, dtype, entries(part).size(), D));

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
  packed_ = device.empty(DType::u8, {static_cast<std::int64_t>(std::max(device.weight_bytes(dtype, T, 4 * D), device.weight_bytes(dtype, cut_.tokens, cut_.part)))});
  logits_ = device.empty(DType::f32, {cut_.slots, cut_.tokens, cut_.part});
  dlogits_ = dtype == DType::f32 ? Tensor() : empty(cut_.tokens, cut_.part);  // float32 ones take the logits' place
  dfinal_ = device.empty(DType::f32, {cut_.tokens, D});
  targets_ = device.empty(DType::i32, {T});
  host_sums_ = host_tensor(DType::f32, {T, 3});
  sums_ = device.counterpart(host_sums_);
  turned_source_ = empty(std::max(V, 4 * D), D);
}

Backprop::HeadCut Backprop::head_cut(const ModelConfig& config, std::int64_t tokens, bool recompute) {
  const std::int64_t V = config.vocab_size, unit = Device::column_unit, parts = (V + vocabulary_part - 1) / vocabulary_part;
  HeadCut cut{.tokens = std::min(tokens, head_tokens), .part = std::min(V, ((V + parts - 1) / parts + unit - 1) / unit * unit), .parts = parts, .slots = 1};
  const std::int64_t fitting = logit_bytes / (cut.tokens * cut.part * static_cast<std::int64_t>(sizeof(float)));
  if (!recompute) cut.slots = std::clamp<std::int64_t>(fitting, 1, parts);
  return cut;
}

double Backprop::flops_per_token(const ModelConfig& c, double keys) {
  const auto D = static_cast<double>(c.d_emb), heads = static_cast<double>(c.q_heads * c.head_dim()), kv = static_cast<double>(c.kv_heads * c.head_dim());
  const double block = D * (heads + 2 * kv) + heads * D + 8 * D * D;
  return static_cast<double>(c.num_layers) * (6 * block + 12 * keys * heads) + 6 * D * static_cast<double>(c.vocab_size);
}

void Backprop::set_parameters(const Tensor& vector) {
  const auto set = [&](const Matrix& m, const Weight& weight, std::span<const Weight> turned) {
    const Tensor values = layout_.of(m, vector);
    ops_.pack(values, weight);
    const Tensor source = rows_of(turned_source_, m.cols, m.rows);
    ops_.transpose(values, source);
    std::int64_t row = 0;
    for (const Weight& part : turned) {
      ops_.pack(source.slice(row, row + part.k), part);
      row += part.k;
    }
  };
  auto m = layout_.matrices.begin();
  ops_.convert(layout_.of(*m++, vector), weights_.embed);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const GptWeights::Block& block = weights_.blocks[i];
    set(*m++, block.qkv, {&turned_[i].qkv, 1});
    set(*m++, block.wo, {&turned_[i].wo, 1});
    set(*m++, block.fc1, {&turned_[i].fc1, 1});
    set(*m++, block.fc2, {&turned_[i].fc2, 1});
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
  ops_.convert(x, middle);
  device_.linear(attended, block.wo, Epilogue::add, middle);
  device_.norm(middle, {eps}, normed);
  device_.linear(normed, block.fc1, Epilogue::relu_squared, hidden);
  const Tensor out = rows_of(inputs_[i + 1], T, D);
  ops_.convert(middle, out);
  device_.linear(hidden, block.fc2, Epilogue::add, out);
}

Weight Backprop::packed(const Tensor& x) {
  const Weight weight{x.size(0), x.size(1), dtype_, packed_.slice(0, static_cast<std::int64_t>(device_.weight_bytes(dtype_, x.size(0), x.size(1))))};
  ops_.pack(x, weight);
  return weight;
}

Tensor Backprop::turned(const Tensor& x) {
  const Tensor out = rows_of(transposed_, x.size(1), x.size(0));
  ops_.transpose(x, out);
  return out;
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

/// f32 [tokens, entries] of a part of the vocabulary; the forward pass computes them, and leaves those of the last part and of as many others as have a place
/// of their own.
Tensor Backprop::logits(const Tensor& normed, std::int64_t part, bool again) {
  const Range range = entries(part);
  const std::int64_t last = cut_.slots - 1;
  const auto cap = static_cast<float>(config_.logit_soft_cap);
  const Tensor out = rows_of(logits_.slice(std::min(part, last), std::min(part, last) + 1), normed.size(0), range.size());
  if (again && (part < last || part == cut_.parts - 1)) return out;
  device_.linear(normed, device_.columns(weights_.lm_head, range.begin, range.end), cap > 0 ? Epilogue::soft_cap : Epilogue::none, out, cap);
  return out;
}

void Backprop::head_forward(std::int64_t from, std::int64_t to) {
  const Tensor normed = normed_.slice(0, to - from);
  device_.norm(inputs_.back().slice(from, to), {static_cast<float>(config_.norm_eps)}, normed);
  for (std::int64_t part = 0; part < cut_.parts; ++part) {
    ops_.softmax_sums(logits(normed, part, false), targets_.slice(from, to), entries(part).begin, sums_.slice(from, to));
  }
}

/// Of the tokens that have just gone forward. The last part comes first: its logits are there still.
void Backprop::head_backward(std::int64_t from, std::int64_t to, float scale, const Tensor& gradient) {
  const std::int64_t n = to - from, D = config_.d_emb;
  const Tensor normed = normed_.slice(0, n), turned_rows = turned(normed), dfinal = dfinal_.slice(0, n), x = inputs_.back().slice(from, to);
  const Tensor of_head = layout_.of(layout_.matrices.back(), gradient);
  for (std::int64_t part = cut_.parts; part-- > 0;) {
    const Range range = entries(part);
    const Tensor here = logits(normed, part, true), dlogits = dlogits_.defined() ? rows_of(dlogits_, n, range.size()) : here;
    ops_.cross_entropy_backward(here, targets_.slice(from, to), range.begin, sums_.slice(from, to), static_cast<float>(config_.logit_soft_cap), scale, dlogits);
    device_.linear(turned_rows, packed(dlogits), from > 0 ? Epilogue::add : Epilogue::none, of_head, 0, range.begin, of_head.size(1));
    device_.linear(dlogits, turned_head_[static_cast<std::size_t>(part)], part + 1 < cut_.parts ? Epilogue::add : Epilogue::none, dfinal);
  }
  const Tensor dnormed = dtype_ == DType::f32 ? dfinal : rows_of(dnormed_, n, D);
  if (dtype_ != DType::f32) ops_.convert(dfinal, dnormed);
  ops_.rms_norm_backward(x, dnormed, static_cast<float>(config_.norm_eps), dx_.slice(from, to), dtype_ == DType::f32 ? Tensor() : dx_low_.slice(from, to));
}

LossSum Backprop::nats_of(const TrainBatch& batch) {
  device_.copy(sums_.slice(0, tokens_), host_sums_.slice(0, tokens_));
  LossSum sum;
  const float* row = host_sums_.data<float>();
  for (const std::int32_t target : batch.targets) {
    if (target >= 0) {
      sum.nats += std::log(static_cast<double>(row[1])) + (static_cast<double>(row[0]) - static_cast<double>(row[2]));
      ++sum.tokens;
    }
    row += 3;
  }
  return sum;
}

LossSum Backprop::run(const TrainBatch& batch, float scale, const Tensor* gradient, const Complete& complete) {
  tokens_ = std::ssize(batch.ids);
  const std::int64_t T = tokens_, V = config_.vocab_size;
  check(T > 0 && T <= capacity_ && batch.targets.size() == batch.ids.size(), "a micro-batch of {} tokens and {} targets, room for {}", T, batch.targets.size(), capacity_);
  for (std::size_t t = 0; t < batch.ids.size(); ++t) {
    check(batch.ids[t] >= 0 && batch.ids[t] < V && batch.targets[t] >= -1 && batch.targets[t] < V, "token {} with target {} of a micro-batch: the vocabulary has {} entries", batch.ids[t],
          batch.targets[t], V);
  }
  pass_ = device_.prepare(batch.ids, batch.segments, {});
  device_.copy(Tensor(nullptr, const_cast<std::int32_t*>(batch.targets.data()), DType::i32, {T}), targets_.slice(0, T));
  device_.gather_rows(weights_.embed, pass_.ids, inputs_[0].slice(0, T));
  for (std::size_t i = 0; i < layers_.size(); ++i) block_forward(i, inputs_[i].slice(0, T));

  if (gradient) ops_.zero(dx_.slice(0, T));
  for (std::int64_t from = 0; from < T; from += cut_.tokens) {
    const std::int64_t to = std::min(T, from + cut_.tokens);
    head_forward(from, to);
    if (gradient) head_backward(from, to, scale, *gradient);
  }
  if (!gradient) return nats_of(batch);

  complete(layout_.matrices.back());
  for (std::size_t i = layers_.size(); i-- > 0;) {
    if (recompute_ && i + 1 < layers_.size()) block_forward(i, inputs_[i].slice(0, T));
    block_backward(i, *gradient, complete);
  }
  const Tensor embed = layout_.of(layout_.matrices.front(), *gradient);
  ops_.zero(embed);
  ops_.scatter_rows(pass_.ids, dx_.slice(0, T), embed);
  complete(layout_.matrices.front());
  return nats_of(batch);
}

LossSum Backprop::loss(const TrainBatch& batch) { return run(batch, 0, nullptr, {}); }

LossSum Backprop::loss_and_gradient(const TrainBatch& batch, float scale, const Tensor& gradient, const Complete& complete) {
  return run(batch, scale, &gradient, [&](const Matrix& m) {
    if (complete) complete(m);
  });
}

}  // namespace kvmesh
