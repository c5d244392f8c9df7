// Norms, RoPE and the cache's new entries, one token at a time.
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/simd.h"

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

/// One head: norm, then RoPE where there is a table.
void norm_rope(const void* from, void* to, bool bf16, std::int64_t from_at, std::int64_t to_at, std::int64_t width, const float* rope, float eps,
               float* x) {
  read_floats(from, bf16, from_at, width, x);
  zero_tail(x, width);
  const float scale = inverse_rms(x, width, eps);
  for (std::int64_t i = 0; i < width; ++i) x[i] *= scale;
  if (rope) {
    const std::int64_t half = width / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half], cos = rope[i], sin = rope[i + half];
      x[i] = a * cos - b * sin;
      x[i + half] = b * cos + a * sin;
    }
  }
  write_floats(x, width, to, bf16, to_at);
}

}  // namespace

std::size_t row_scratch(std::int64_t width) { return static_cast<std::size_t>(round_up(width, lanes)) * 4; }

void rms_norm(const void* from, void* to, bool bf16, std::int64_t width, float eps, void* scratch) {
  norm_rope(from, to, bf16, 0, 0, width, nullptr, eps, static_cast<float*>(scratch));
}

void append(const AppendTask& t, void* scratch) {
  float* x = static_cast<float*>(scratch);
  const std::int64_t h = t.head_dim;
  for (std::int64_t i = 0; i < t.heads; ++i) norm_rope(t.qkv, t.q, t.bf16, i * h, i * h, h, t.rope, t.eps, x);
  for (std::int64_t i = 0; i < t.kv_heads; ++i) norm_rope(t.qkv, t.k, t.bf16, (t.heads + i) * h, i * t.head_stride, h, t.rope, t.eps, x);
  const std::int64_t size = t.bf16 ? 2 : 4;
  for (std::int64_t i = 0; i < t.kv_heads; ++i) {
    const char* from = static_cast<const char*>(t.qkv) + (t.heads + t.kv_heads + i) * h * size;
    __builtin_memcpy(static_cast<char*>(t.v) + i * t.head_stride * size, from, static_cast<std::size_t>(h * size));
  }
}

}  // namespace kvmesh::cpu::KVMESH_ISA
