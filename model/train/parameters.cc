#include "model/train/parameters.h"

#include "model/hash.h"
#include "runtime/noise.h"

#include <cmath>
#include <cstring>
#include <numbers>

namespace kvmesh {
namespace {

/// Columns of matrix `m` that the checkpoint's tensor `i` fills begin here.
std::int64_t first_column(const Matrix& m, std::size_t i) {
  std::int64_t column = 0;
  for (std::size_t j = 0; j < i; ++j) column += m.widths[j];
  return column;
}

}  // namespace

ParamLayout::ParamLayout(const ModelConfig& c) {
  const std::int64_t D = c.d_emb, H = c.q_heads, K = c.kv_heads, h = c.head_dim(), V = c.vocab_size;
  const auto push = [&](Matrix m) {
    m.name = m.names[0];
    m.offset = size;
    size += (m.size() + 15) / 16 * 16;
    matrices.push_back(std::move(m));
  };
  push({.name = {}, .names = {"embed.weight"}, .widths = {D}, .rows = V, .cols = D, .group = Group::embed});
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const std::string b = fmt::format("blocks.{}.", i);
    push({.name = {}, .names = {b + "attn.wq", b + "attn.wk", b + "attn.wv"}, .widths = {H * h, K * h, K * h}, .rows = D, .cols = (H + 2 * K) * h, .heads = H + 2 * K});
    push({.name = {}, .names = {b + "attn.wo"}, .widths = {D}, .rows = H * h, .cols = D, .heads = H, .heads_are_rows = true});
    push({.name = {}, .names = {b + "mlp.fc1.weight"}, .widths = {4 * D}, .rows = D, .cols = 4 * D});
    push({.name = {}, .names = {b + "mlp.fc2.weight"}, .widths = {D}, .rows = 4 * D, .cols = D});
  }
  push({.name = {}, .names = {"lm_head.weight"}, .widths = {V}, .rows = D, .cols = V, .group = Group::head});
}

Tensor ParamLayout::of(const Matrix& m, const Tensor& vector) const { return vector.slice(m.offset, m.offset + m.size()).view({m.rows, m.cols}); }

void initialize(const ModelConfig& config, const ParamLayout& layout, Init init, std::uint32_t seed, const Tensor& vector) {
  std::memset(vector.raw(), 0, vector.bytes());
  const auto fill = [&](const Matrix& m, std::size_t i, const auto& from_bits) {
    const NoiseKey key = fold_in(fold_in(noise_key(seed), static_cast<std::uint32_t>(hash_of(m.names[i], 0))), 0);
    float* const to = layout.of(m, vector).data<float>() + first_column(m, i);
    for (std::int64_t r = 0; r < m.rows; ++r) {
      for (std::int64_t c = 0; c < m.widths[i]; ++c) {
        const auto at = static_cast<std::uint64_t>(r * m.widths[i] + c);
        to[r * m.cols + c] = from_bits(key, at);
      }
    }
  };
  const auto unit = [](NoiseKey key, std::uint64_t at) { return (static_cast<double>(noise_bits(key, at)) + 0.5) / 4294967296.0; };
  const auto normal = [&](double deviation) {  // Box and Muller
    return [=](NoiseKey key, std::uint64_t at) {
      return static_cast<float>(deviation * std::sqrt(-2.0 * std::log(unit(key, 2 * at))) * std::cos(2.0 * std::numbers::pi * unit(key, 2 * at + 1)));
    };
  };
  for (const Matrix& m : layout.matrices) {
    if (m.group == Group::embed) fill(m, 0, normal(init == Init::copying ? 2.0 : 1.0));
    else if (m.group == Group::head && init == Init::original) fill(m, 0, normal(0.001));
    else if (m.group == Group::head) continue;
    else if (m.names.size() == 1 && m.name.find("fc1") == std::string::npos) continue;  // wo, fc2
    else {
      const double bound = std::sqrt(3.0 / static_cast<double>(m.rows));
      for (std::size_t i = 0; i < m.names.size(); ++i) fill(m, i, [&](NoiseKey key, std::uint64_t at) { return static_cast<float>(bound * (2.0 * unit(key, at) - 1.0)); });
    }
  }
  if (init == Init::original) return;
  const std::int64_t D = config.d_emb, V = config.vocab_size, h = config.head_dim(), group = config.q_heads / config.kv_heads;
  const float* const embed = layout.of(layout.matrices.front(), vector).data<float>();
  float* const head = layout.of(layout.matrices.back(), vector).data<float>();
  for (std::int64_t v = 0; v < V; ++v) {
    for (std::int64_t d = 0; d < D; ++d) head[d * V + v] = 0.01f * embed[v * D + d];
  }
  for (std::size_t i = 0; i < layout.matrices.size(); ++i) {
    const Matrix& qkv = layout.matrices[i];
    if (qkv.names.size() != 3) continue;
    const float* const wv = layout.of(qkv, vector).data<float>() + first_column(qkv, 2);  // [D, K·h]
    float* const wo = layout.of(layout.matrices[i + 1], vector).data<float>();             // [H·h, D]
    for (std::int64_t q = 0; q < config.q_heads * h; ++q) {
      for (std::int64_t d = 0; d < D; ++d) wo[q * D + d] = wv[d * qkv.cols + q / h / group * h + q % h];
    }
  }
}

void read_parameters(const std::filesystem::path& folder, const ModelConfig& config, const ParamLayout& layout, const Tensor& vector) {
  const SafetensorsFolder files(folder);
  find_params(files, config);
  std::memset(vector.raw(), 0, vector.bytes());
  for (const Matrix& m : layout.matrices) {
    for (std::size_t i = 0; i < m.names.size(); ++i) {
      const auto& [file, tensor] = files.tensors().find(m.names[i])->second;
      float* const to = layout.of(m, vector).data<float>() + first_column(m, i);
      for (std::int64_t r = 0; r < m.rows; ++r) file->read(*tensor, r * m.widths[i], m.widths[i], DType::f32, to + r * m.cols);
    }
  }
}

void read_vector(const SafetensorsFile& file, const std::string& prefix, const ParamLayout& layout, const Tensor& vector) {
  std::memset(vector.raw(), 0, vector.bytes());
  for (const Matrix& m : layout.matrices) {
    for (std::size_t i = 0; i < m.names.size(); ++i) {
      const TensorInfo* const tensor = file.find(prefix + m.names[i]);
      check(tensor != nullptr && tensor->dtype == DType::f32 && tensor->shape.numel() == m.rows * m.widths[i], "{}: tensor {}{} is not there as float32 with {} elements",
            file.path().string(), prefix, m.names[i], m.rows * m.widths[i]);
      float* const to = layout.of(m, vector).data<float>() + first_column(m, i);
      for (std::int64_t r = 0; r < m.rows; ++r) file.read(*tensor, r * m.widths[i], m.widths[i], DType::f32, to + r * m.cols);
    }
  }
}

std::vector<NamedTensor> named_tensors(const ModelConfig& config, const ParamLayout& layout, const Tensor& vector, DType dtype, const std::string& prefix) {
  std::vector<NamedTensor> out;
  for (const ParamSpec& spec : param_specs(config)) out.push_back({prefix + spec.name, host_tensor(dtype, spec.shape)});
  auto target = out.begin();  // the layout has the checkpoint's order
  for (const Matrix& m : layout.matrices) {
    for (std::size_t i = 0; i < m.names.size(); ++i, ++target) {
      const float* const from = layout.of(m, vector).data<float>() + first_column(m, i);
      for (std::int64_t r = 0; r < m.rows; ++r) {
        for (std::int64_t c = 0; c < m.widths[i]; ++c) {
          const float x = from[r * m.cols + c];
          if (dtype == DType::bf16) target->tensor.data<bfloat16>()[r * m.widths[i] + c] = bfloat16(x);
          else target->tensor.data<float>()[r * m.widths[i] + c] = x;
        }
      }
    }
  }
  return out;
}

}  // namespace kvmesh
