// The forward pass (contract, section 2).
#include "model/gpt.h"

#include <algorithm>
#include <cmath>

namespace kvmesh {
// Angles position / theta^(2i/h) are taken in float64 and their cos and sin rounded once to float32: correct to the last place at
// every position. (The original multiplies in float32 and loses up to 1e-4 rad near position 2048.)
Tensor rope_table(Device& device, std::int64_t positions, std::int64_t head_dim, double theta) {
  Tensor table = host_tensor(DType::f32, {positions, head_dim});
  float* row = table.data<float>();
  const std::int64_t half = head_dim / 2;
  for (std::int64_t p = 0; p < positions; ++p, row += head_dim) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) / std::pow(theta, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  Tensor out = device.empty(DType::f32, {positions, head_dim});
  device.copy(table, out);
  return out;
}

Gpt::Gpt(ModelConfig config, DType dtype, GptWeights weights, Device& device)
    : config_(std::move(config)),
      dtype_(dtype),
      weights_(std::move(weights)),
      device_(device),
      layers_(config_.layers()),
      rope_(rope_table(device, config_.seqlen, config_.head_dim(), config_.rope_theta)) {}

Gpt::Workspace::Workspace(const Gpt& gpt, std::int64_t tokens_) : tokens(tokens_) {
  const ModelConfig& c = gpt.config_;
  Device& d = gpt.device_;
  const std::int64_t heads = c.q_heads * c.head_dim();
  x = d.empty(gpt.dtype_, {tokens, c.d_emb});
  normed = d.empty(gpt.dtype_, {tokens, c.d_emb});
  qkv = d.empty(gpt.dtype_, {tokens, heads + 2 * c.kv_heads * c.head_dim()});
  q = d.empty(gpt.dtype_, {tokens, heads});
  attended = d.empty(gpt.dtype_, {tokens, heads});
  hidden = d.empty(gpt.dtype_, {tokens, 4 * c.d_emb});
}

void Gpt::forward(std::span<const std::int32_t> tokens, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const KvCache& cache,
                  Workspace& workspace, const Tensor& logits) const {
  std::vector<Segment> chunk;
  std::vector<std::int32_t> rows;
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
    forward_chunk(tokens.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(to - from)), chunk, rows, cache, workspace,
                  rows.empty() ? Tensor() : logits.slice(static_cast<std::int64_t>(first), static_cast<std::int64_t>(w)));
  }
}

void Gpt::forward_chunk(std::span<const std::int32_t> tokens, std::span<const Segment> segments, std::span<const std::int32_t> wanted,
                        const KvCache& cache, Workspace& workspace, const Tensor& logits) const {
  const Pass pass = device_.prepare(tokens, segments, wanted);
  device_.run(pass, {serial_, cache.serial(), workspace.serial, logits.raw()}, [&] { enqueue(pass, std::ssize(tokens), cache, workspace, logits); });
}

void Gpt::enqueue(const Pass& pass, std::int64_t t, const KvCache& cache, Workspace& workspace, const Tensor& logits) const {
  const auto eps = static_cast<float>(config_.norm_eps);
  const Tensor x = workspace.x.slice(0, t), normed = workspace.normed.slice(0, t);                // [t, D]
  const Tensor qkv = workspace.qkv.slice(0, t);                                                   // [t, (H + 2·K)·h]
  const Tensor q = workspace.q.slice(0, t), attended = workspace.attended.slice(0, t);            // [t, H·h]
  const Tensor hidden = workspace.hidden.slice(0, t);                                             // [t, 4·D]

  device_.gather_rows(weights_.embed, pass.ids, x);
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const GptWeights::Block& block = weights_.blocks[i];
    const LayerCache& layer = cache.layer(static_cast<std::int64_t>(i));
    device_.rms_norm(x, eps, normed);
    device_.linear(normed, block.qkv, Epilogue::none, qkv);
    device_.norm_rope_append(qkv, pass, layers_[i].rope ? rope_ : Tensor(), eps, q, layer);
    device_.attention(q, pass, layer, layers_[i].window, attended);
    device_.linear(attended, block.wo, Epilogue::add, x);
    device_.rms_norm(x, eps, normed);
    device_.linear(normed, block.fc1, Epilogue::relu_squared, hidden);
    device_.linear(hidden, block.fc2, Epilogue::add, x);
  }
  const std::int64_t wanted = pass.wanted.numel();
  if (wanted == 0) return;
  // Only the rows that somebody wants meet the vocabulary. `normed` and then `x` are free to hold them.
  const Tensor last = workspace.normed.slice(0, wanted), last_normed = workspace.attended.view({workspace.tokens, config_.d_emb}).slice(0, wanted);
  device_.gather_rows(x, pass.wanted, last);
  device_.rms_norm(last, eps, last_normed);
  const auto cap = static_cast<float>(config_.logit_soft_cap);
  device_.linear(last_normed, weights_.lm_head, cap > 0 ? Epilogue::soft_cap : Epilogue::none, logits, cap);
}

}  // namespace kvmesh
