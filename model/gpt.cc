// The forward pass (contract, section 2).
#include "model/gpt.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numbers>
#include <utility>

namespace kvmesh {
namespace {

/// From where to where, in pairs of a head, yarn goes over from waves that stay to waves that are stretched. Source: Peng et al., "YaRN" (2023), section 3.2.
std::pair<double, double> yarn_pairs(const ModelConfig& config) {
  const RopeScaling& s = config.rope_scaling;
  const auto h = static_cast<double>(config.head_dim());
  const auto pair_that_turns = [&](double times) { return h * std::log(static_cast<double>(s.original_positions) / (times * 2 * std::numbers::pi)) / (2 * std::log(config.rope_theta)); };
  double first = pair_that_turns(s.beta_fast), last = pair_that_turns(s.beta_slow);
  if (s.truncate) first = std::floor(first), last = std::ceil(last);
  first = std::max(first, 0.0), last = std::min(last, h - 1);
  return {first, first == last ? last + 0.001 : last};
}

/// What a position is divided by to get its head_dim / 2 angles. Source of llama3's stretching: transformers' rope type of that name, after Meta's Llama 3.1:
/// waves longer than the old context / low_freq_factor by the whole factor, those shorter than the old context / high_freq_factor not at all, those
/// between by a part.
std::vector<double> rope_divisors(const ModelConfig& config) {
  const RopeScaling& s = config.rope_scaling;
  const auto [first, last] = s.kind == RopeScaling::Kind::yarn ? yarn_pairs(config) : std::pair(0.0, 0.0);
  std::vector<double> divisors;
  for (std::int64_t i = 0; i < config.head_dim() / 2; ++i) {
    double d = std::pow(config.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(config.head_dim()));
    if (s.kind == RopeScaling::Kind::linear) d *= s.factor;
    if (s.kind == RopeScaling::Kind::llama3) {
      const double waves = static_cast<double>(s.original_positions) / (2 * std::numbers::pi * d);  // in the old context
      const double kept = std::clamp((waves - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0);
      d /= (1 - kept) / s.factor + kept;
    }
    if (s.kind == RopeScaling::Kind::yarn) {
      const double stretched = std::clamp((static_cast<double>(i) - first) / (last - first), 0.0, 1.0);
      d /= stretched / s.factor + 1 - stretched;
    }
    divisors.push_back(d);
  }
  return divisors;
}

}  // namespace

Epilogue epilogue_of(Activation activation) {
  switch (activation) {
    case Activation::relu_squared: return Epilogue::relu_squared;
    case Activation::gelu_tanh: return Epilogue::gelu_tanh;
    case Activation::gelu: return Epilogue::gelu;
    default: return Epilogue::none;  // swiglu is an operation of its own
  }
}

// Angles are taken in float64 and their cos and sin rounded once to float32: correct to the last place at every position. (The original multiplies in
// float32 and loses up to 1e-4 rad near position 2048.)
Tensor rope_table(Device& device, const ModelConfig& config) {
  Tensor table = host_tensor(DType::f32, {config.seqlen, config.head_dim()});
  float* row = table.data<float>();
  const std::int64_t half = config.head_dim() / 2;
  const std::vector<double> divisors = rope_divisors(config);
  const double magnitude = config.rope_scaling.magnitude;
  for (std::int64_t p = 0; p < config.seqlen; ++p, row += 2 * half) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) / divisors[static_cast<std::size_t>(i)];
      row[i] = static_cast<float>(magnitude * std::cos(angle));
      row[half + i] = static_cast<float>(magnitude * (config.rope_backwards ? -std::sin(angle) : std::sin(angle)));
    }
  }
  Tensor out = device.empty(DType::f32, {config.seqlen, config.head_dim()});
  device.copy(table, out);
  return out;
}

Gpt::Gpt(ModelConfig config, DType dtype, GptWeights weights, Device& device)
    : config_(std::move(config)),
      dtype_(dtype),
      weights_(std::move(weights)),
      device_(device),
      layers_(config_.layers()),
      rope_(config_.learned_positions > 0 ? Tensor() : rope_table(device, config_)) {}

Gpt::Workspace::Workspace(const Gpt& gpt, std::int64_t tokens_) : tokens(tokens_) {
  const ModelConfig& c = gpt.config_;
  Device& d = gpt.device_;
  const std::int64_t heads = c.q_heads * c.head_dim();
  x = d.empty(gpt.dtype_, {tokens, c.d_emb});
  normed = d.empty(gpt.dtype_, {tokens, c.d_emb});
  qkv = d.empty(gpt.dtype_, {tokens, heads + 2 * c.kv_heads * c.head_dim()});
  q = d.empty(gpt.dtype_, {tokens, heads});
  attended = d.empty(gpt.dtype_, {tokens, heads});
  hidden = d.empty(gpt.dtype_, {tokens, c.mlp_columns()});
  if (c.activation == Activation::swiglu) gated = d.empty(gpt.dtype_, {tokens, c.mlp_width()});
  last = d.empty(gpt.dtype_, {tokens, c.d_emb});
}

void Gpt::forward(std::span<const std::int32_t> tokens, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const KvCache& cache,
                  Workspace& workspace, const Tensor& logits, const Tensor& drawn) const {
  std::vector<Segment>& chunk = workspace.segments;
  std::vector<std::int32_t>& rows = workspace.wanted;
  std::size_t s = 0, w = 0;
  for (std::int64_t from = 0; from < std::ssize(tokens); from += workspace.tokens) {
    const std::int64_t to = std::min<std::int64_t>(from + workspace.tokens, std::ssize(tokens));
    chunk.clear();
    for (; s < segments.size() && segments[s].offset < to; ++s) {
      const Segment& whole = segments[s];
      const std::int64_t begin = std::max<std::int64_t>(whole.offset, from), end = std::min<std::int64_t>(whole.offset + whole.count, to);
      chunk.push_back({whole.start, whole.begin + (begin - whole.offset), whole.place, static_cast<std::int32_t>(end - begin),
                       static_cast<std::int32_t>(begin - from)});
      if (whole.offset + whole.count > to) break;  // its rest is in the next chunk
    }
    rows.clear();
    const std::size_t first = w;
    for (; w < wanted.size() && wanted[w] < to; ++w) rows.push_back(wanted[w] - static_cast<std::int32_t>(from));
    const std::span<const std::int32_t> part = tokens.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(to - from));
    forward_chunk(device_.prepare(part, chunk, rows, drawn), std::ssize(part), cache, workspace, rows.empty() ? Tensor() : logits.slice(static_cast<std::int64_t>(first), static_cast<std::int64_t>(w)));
  }
}

void Gpt::forward_chunk(const Pass& pass, std::int64_t tokens, const KvCache& cache, Workspace& workspace, const Tensor& logits) const {
  const auto body = [&] { enqueue(pass, tokens, cache, workspace, logits); };
  device_.run(pass, {serial_, cache.serial(), workspace.serial, logits.raw(), cache.size()}, std::cref(body));  // a reference fits into a function without memory of its own
}

void Gpt::enqueue(const Pass& pass, std::int64_t t, const KvCache& cache, Workspace& workspace, const Tensor& logits) const {
  const auto eps = static_cast<float>(config_.norm_eps);
  const Tensor x = workspace.x.slice(0, t), normed = workspace.normed.slice(0, t);                // [t, D]
  const Tensor qkv = workspace.qkv.slice(0, t);                                                   // [t, (H + 2·K)·h]
  const Tensor q = workspace.q.slice(0, t), attended = workspace.attended.slice(0, t);            // [t, H·h]
  const Tensor hidden = workspace.hidden.slice(0, t);                                             // [t, columns of fc1]
  const bool gated = config_.activation == Activation::swiglu;
  const Tensor inner = gated ? workspace.gated.slice(0, t) : hidden;                              // [t, F]
  const auto norm = [&](const Tensor& from, const GptWeights::NormWeights& w, const Tensor& to) { device_.norm(from, {eps, config_.layer_norm, w.weight, w.bias}, to); };

  device_.gather_rows(weights_.embed, pass.ids, config_.embedding_norm ? normed : x);
  if (config_.embedding_norm) norm(normed, {}, x);
  if (config_.learned_positions > 0) device_.add_positions(weights_.positions, pass, x);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const GptWeights::Block& block = weights_.blocks[i];
    const LayerCache& layer = cache.layer(static_cast<std::int64_t>(i));
    norm(x, block.attn_norm, normed);
    device_.linear(normed, block.qkv, Epilogue::none, qkv);
    device_.norm_rope_append(qkv, pass, layers_[i].rope ? rope_ : Tensor(), {eps, config_.head_norms == ModelConfig::HeadNorms::none, block.q_norm, block.k_norm}, q, layer);
    device_.attention(q, pass, layer, layers_[i].window, attended);
    device_.linear(attended, block.wo, Epilogue::add, x);
    norm(x, block.mlp_norm, normed);
    device_.linear(normed, block.fc1, epilogue_of(config_.activation), hidden);
    if (gated) device_.swiglu(hidden, inner);
    device_.linear(inner, block.fc2, Epilogue::add, x);
  }
  const std::int64_t wanted = pass.wanted.numel();
  if (wanted == 0) return;
  // Only the rows that somebody wants meet the vocabulary.
  const Tensor last = workspace.normed.slice(0, wanted), last_normed = workspace.last.slice(0, wanted);
  device_.gather_rows(x, pass.wanted, last);
  norm(last, weights_.norm, last_normed);
  const auto cap = static_cast<float>(config_.logit_soft_cap);
  device_.linear(last_normed, weights_.lm_head, cap > 0 ? Epilogue::soft_cap : Epilogue::none, logits, cap);
}

}  // namespace kvmesh
