// A plain float64 twin of the contract's section 2, written from its formulas, and random weights to compare on.
#pragma once

#include "model/checkpoint.h"
#include "runtime/device.h"

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace kvmesh::test {

using Weights = std::map<std::string, std::vector<float>>;

/// Normal numbers of such a size that logits and their gaps are of order 1; with bf16 they are representable in it.
inline Weights random_weights(const ModelConfig& config, DType dtype, unsigned seed) {
  std::mt19937 random(seed);
  Weights weights;
  for (const ParamSpec& spec : param_specs(config)) {
    const double fan_in = spec.name == "embed.weight" ? 1 : spec.name.ends_with("wo") ? static_cast<double>(config.d_emb) : static_cast<double>(spec.shape[0]);
    std::normal_distribution<double> normal(0, (spec.name == "lm_head.weight" ? 2 : 1) / std::sqrt(fan_in));
    std::vector<float>& w = weights[spec.name];
    for (std::int64_t i = 0; i < spec.shape.numel(); ++i) {
      const auto x = static_cast<float>(normal(random));
      w.push_back(dtype == DType::bf16 ? static_cast<float>(bfloat16(x)) : x);
    }
  }
  return weights;
}

/// The same model with the matrices of products as integers of 8 bits times a scale a column.
inline Weights quantized(const ModelConfig& config, Weights weights) {
  for (const ParamSpec& spec : param_specs(config)) {
    if (spec.name == "embed.weight") continue;
    std::vector<float>& w = weights.at(spec.name);
    const std::size_t n = w.size() / static_cast<std::size_t>(spec.name.ends_with("wo") ? config.d_emb : spec.shape[0]);
    for (std::size_t j = 0; j < n; ++j) {
      float most = 0;
      for (std::size_t i = j; i < w.size(); i += n) most = std::max(most, std::abs(w[i]));
      const float scale = most / 127;
      for (std::size_t i = j; i < w.size(); i += n) w[i] = scale * std::nearbyint(w[i] / scale);
    }
  }
  return weights;
}

/// The weights packed for the device, as load_weights would.
inline GptWeights pack(const ModelConfig& config, DType dtype, const Weights& weights, Device& device, Quantize quantize = Quantize::none) {
  const auto pack_one = [&](const std::vector<float>& w, std::int64_t k, std::int64_t n) {
    Weight out{.k = k, .n = n, .dtype = dtype, .data = host_tensor(DType::u8, {static_cast<std::int64_t>(device.weight_bytes(dtype, k, n, quantize))}), .quantize = quantize};
    device.pack_weight(Tensor(nullptr, const_cast<float*>(w.data()), DType::f32, {k, n}), dtype, out.data.raw(), quantize);
    out.data = device.resident(out.data);
    return out;
  };
  const std::int64_t d = config.d_emb, h = config.head_dim(), heads = config.q_heads * h, kv = config.kv_heads * h;
  GptWeights out;
  out.embed = host_tensor(dtype, {config.vocab_size, d});
  const std::vector<float>& embed = weights.at("embed.weight");
  for (std::size_t i = 0; i < embed.size(); ++i) {
    if (dtype == DType::f32) out.embed.data<float>()[i] = embed[i];
    else out.embed.data<bfloat16>()[i] = bfloat16(embed[i]);
  }
  out.embed = device.resident(out.embed);
  for (std::int64_t b = 0; b < config.num_layers; ++b) {
    const std::string name = "blocks." + std::to_string(b);
    const auto& wq = weights.at(name + ".attn.wq");
    const auto& wk = weights.at(name + ".attn.wk");
    const auto& wv = weights.at(name + ".attn.wv");
    std::vector<float> qkv;
    for (std::int64_t row = 0; row < d; ++row) {
      qkv.insert(qkv.end(), wq.begin() + row * heads, wq.begin() + (row + 1) * heads);
      qkv.insert(qkv.end(), wk.begin() + row * kv, wk.begin() + (row + 1) * kv);
      qkv.insert(qkv.end(), wv.begin() + row * kv, wv.begin() + (row + 1) * kv);
    }
    out.blocks.push_back({pack_one(qkv, d, heads + 2 * kv), pack_one(weights.at(name + ".attn.wo"), heads, d),
                          pack_one(weights.at(name + ".mlp.fc1.weight"), d, 4 * d), pack_one(weights.at(name + ".mlp.fc2.weight"), 4 * d, d)});
  }
  out.lm_head = pack_one(weights.at("lm_head.weight"), d, config.vocab_size);
  return out;
}

/// Logits after every token of one row: [tokens][V].
inline std::vector<std::vector<double>> twin_logits(const ModelConfig& config, const Weights& weights, const std::vector<std::int32_t>& tokens) {
  using Row = std::vector<double>;
  const auto d = static_cast<std::size_t>(config.d_emb), h = static_cast<std::size_t>(config.head_dim()), q_heads = static_cast<std::size_t>(config.q_heads),
             kv_heads = static_cast<std::size_t>(config.kv_heads), n = tokens.size();
  const auto norm = [&](Row x) {
    double squares = 0;
    for (const double v : x) squares += v * v;
    for (double& v : x) v /= std::sqrt(squares / static_cast<double>(x.size()) + config.norm_eps);
    return x;
  };
  const auto times = [](const Row& x, const std::vector<float>& w) {  // x [K] · w [K, N]
    Row y(w.size() / x.size());
    for (std::size_t k = 0; k < x.size(); ++k) {
      for (std::size_t j = 0; j < y.size(); ++j) y[j] += x[k] * static_cast<double>(w[k * y.size() + j]);
    }
    return y;
  };
  const auto heads_of = [&](const Row& x, std::size_t heads, std::size_t position, bool normed, bool rope) {
    std::vector<Row> out;
    for (std::size_t i = 0; i < heads; ++i) {
      Row head(x.begin() + static_cast<std::ptrdiff_t>(i * h), x.begin() + static_cast<std::ptrdiff_t>((i + 1) * h));
      if (normed) head = norm(head);
      if (rope) {
        for (std::size_t j = 0; j < h / 2; ++j) {
          const double angle = static_cast<double>(position) / std::pow(config.rope_theta, 2.0 * static_cast<double>(j) / static_cast<double>(h));
          const double a = head[j], b = head[j + h / 2];
          head[j] = a * std::cos(angle) - b * std::sin(angle);
          head[j + h / 2] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
      out.push_back(head);
    }
    return out;
  };

  std::vector<Row> x(n);
  for (std::size_t t = 0; t < n; ++t) {
    const auto& embed = weights.at("embed.weight");
    x[t].assign(embed.begin() + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(tokens[t]) * d), embed.begin() + static_cast<std::ptrdiff_t>((static_cast<std::size_t>(tokens[t]) + 1) * d));
  }
  const std::vector<ModelConfig::Layer> layers = config.layers();
  for (std::size_t b = 0; b < layers.size(); ++b) {
    const std::string name = "blocks." + std::to_string(b);
    std::vector<std::vector<Row>> keys, values;
    for (std::size_t t = 0; t < n; ++t) {
      const Row normed = norm(x[t]);
      const auto q = heads_of(times(normed, weights.at(name + ".attn.wq")), q_heads, t, true, layers[b].rope);
      keys.push_back(heads_of(times(normed, weights.at(name + ".attn.wk")), kv_heads, t, true, layers[b].rope));
      values.push_back(heads_of(times(normed, weights.at(name + ".attn.wv")), kv_heads, t, false, false));
      Row attended;
      for (std::size_t i = 0; i < q_heads; ++i) {
        const std::size_t g = i / (q_heads / kv_heads);
        const std::size_t from = layers[b].window >= 0 && t > static_cast<std::size_t>(layers[b].window) ? t - static_cast<std::size_t>(layers[b].window) : 0;
        Row p;
        double sum = 0;
        for (std::size_t s = from; s <= t; ++s) {
          double score = 0;
          for (std::size_t j = 0; j < h; ++j) score += q[i][j] * keys[s][g][j];
          p.push_back(std::exp(score / std::sqrt(static_cast<double>(h))));
          sum += p.back();
        }
        for (std::size_t j = 0; j < h; ++j) {
          double v = 0;
          for (std::size_t s = from; s <= t; ++s) v += p[s - from] / sum * values[s][g][j];
          attended.push_back(v);
        }
      }
      const Row out = times(attended, weights.at(name + ".attn.wo"));
      for (std::size_t j = 0; j < d; ++j) x[t][j] += out[j];
    }
    for (std::size_t t = 0; t < n; ++t) {
      Row hidden = times(norm(x[t]), weights.at(name + ".mlp.fc1.weight"));
      for (double& v : hidden) v = v > 0 ? v * v : 0;
      const Row out = times(hidden, weights.at(name + ".mlp.fc2.weight"));
      for (std::size_t j = 0; j < d; ++j) x[t][j] += out[j];
    }
  }
  std::vector<Row> logits;
  for (std::size_t t = 0; t < n; ++t) {
    Row row = times(norm(x[t]), weights.at("lm_head.weight"));
    const double cap = config.logit_soft_cap;
    if (cap > 0) {
      for (double& v : row) v = cap * std::tanh(v / cap);
    }
    logits.push_back(row);
  }
  return logits;
}

/// log softmax
inline std::vector<double> log_softmax(const std::vector<double>& logits) {
  double sum = 0;
  for (const double v : logits) sum += std::exp(v);
  std::vector<double> out;
  for (const double v : logits) out.push_back(v - std::log(sum));
  return out;
}

}  // namespace kvmesh::test
