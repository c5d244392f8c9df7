// Norms, positions, the gated activation, RoPE and the cache's new entries, one token at a time.
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/math.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

/// 1 / sqrt(mean(x²) + eps) of x [width], followed by zeros up to a whole number of vectors.
float inverse_rms(const float* x, std::int64_t width, float eps) {
  Floats sum = {};
  for (std::int64_t i = 0; i < width; i += lanes) {
    const Floats v = load<Floats>(x + i);
    sum = fma(v, v, sum);
  }
  const float mean = sum_lanes(sum) / static_cast<float>(width) + eps;
  return 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(mean)));
}

void zero_tail(float* x, std::int64_t width) {
  for (std::int64_t i = width; i < round_up(width, lanes); ++i) x[i] = 0;
}

/// x [width] becomes (x - mean) / sqrt(variance + eps).
void centre(float* x, std::int64_t width, float eps) {
  zero_tail(x, width);
  Floats sum = {};
  for (std::int64_t i = 0; i < width; i += lanes) sum = sum + load<Floats>(x + i);
  const float mean = sum_lanes(sum) / static_cast<float>(width);
  for (std::int64_t i = 0; i < width; ++i) x[i] -= mean;
  const float scale = inverse_rms(x, width, eps);
  for (std::int64_t i = 0; i < width; ++i) x[i] *= scale;
}

void scale_by_rms(float* x, std::int64_t width, float eps) {
  zero_tail(x, width);
  const float scale = inverse_rms(x, width, eps);
  for (std::int64_t i = 0; i < width; ++i) x[i] *= scale;
}

/// One head of a query or key: norm, then RoPE where there is a table.
void norm_rope(const AppendTask& t, const void* from, void* to, std::int64_t from_at, std::int64_t to_at, const float* weight, float* x) {
  const std::int64_t width = t.head_dim;
  read_floats(from, t.bf16, from_at, width, x);
  if (t.norm) scale_by_rms(x, width, t.eps);
  if (weight) {
    for (std::int64_t i = 0; i < width; ++i) x[i] *= weight[i];
  }
  if (t.rope) {
    const std::int64_t half = width / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half], cos = t.rope[i], sin = t.rope[i + half];
      x[i] = a * cos - b * sin;
      x[i + half] = b * cos + a * sin;
    }
  }
  write_floats(x, width, to, t.bf16, to_at);
}

}  // namespace

std::size_t row_scratch(std::int64_t width) { return static_cast<std::size_t>(round_up(width, lanes)) * 4; }

void norm(const NormTask& t, const void* from, void* to, void* scratch) {
  float* x = static_cast<float*>(scratch);
  read_floats(from, t.bf16, 0, t.width, x);
  t.centred ? centre(x, t.width, t.eps) : scale_by_rms(x, t.width, t.eps);
  if (t.weight) {
    for (std::int64_t i = 0; i < t.width; ++i) x[i] *= t.weight[i];
  }
  if (t.bias) {
    for (std::int64_t i = 0; i < t.width; ++i) x[i] += t.bias[i];
  }
  write_floats(x, t.width, to, t.bf16, 0);
}

void add_row(void* to, const void* from, bool bf16, std::int64_t width, void* scratch) {
  float* x = static_cast<float*>(scratch);
  float* y = x + round_up(width, lanes);
  read_floats(to, bf16, 0, width, x);
  read_floats(from, bf16, 0, width, y);
  for (std::int64_t i = 0; i < width; ++i) x[i] += y[i];
  write_floats(x, width, to, bf16, 0);
}

void swiglu(const void* from, void* to, bool bf16, std::int64_t width, void* scratch) {
  float* gate = static_cast<float*>(scratch);
  float* up = gate + round_up(width, lanes);
  zero_tail(gate, width);
  zero_tail(up, width);
  read_floats(from, bf16, 0, width, gate);
  read_floats(from, bf16, width, width, up);
  for (std::int64_t i = 0; i < width; i += lanes) {
    const Floats g = load<Floats>(gate + i);
    const Floats e = exp((Floats)((Words)g | 0x80000000u));  // of -|g|, so that nothing overflows
    const Floats sigmoid = if_less(g, Floats{}, e, splat(1.0f)) / (1.0f + e);
    store(gate + i, g * sigmoid * load<Floats>(up + i));
  }
  write_floats(gate, width, to, bf16, 0);
}

void append(const AppendTask& t, void* scratch) {
  float* x = static_cast<float*>(scratch);
  const std::int64_t h = t.head_dim;
  for (std::int64_t i = 0; i < t.heads; ++i) norm_rope(t, t.qkv, t.q, i * h, i * h, t.q_weight, x);
  for (std::int64_t i = 0; i < t.kv_heads; ++i) norm_rope(t, t.qkv, t.k, (t.heads + i) * h, i * t.head_stride, t.k_weight, x);
  const std::int64_t size = t.bf16 ? 2 : 4;
  for (std::int64_t i = 0; i < t.kv_heads; ++i) {
    const char* from = static_cast<const char*>(t.qkv) + (t.heads + t.kv_heads + i) * h * size;
    __builtin_memcpy(static_cast<char*>(t.v) + i * t.head_stride * size, from, static_cast<std::size_t>(h * size));
  }
}

}  // namespace kvmesh::cpu::KVMESH_ISA
