// The backward passes of what rows.cc and linear.cc's epilogues do, the loss, and the optimizers' elementwise steps.
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/train_kernels.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t size_of(bool bf16) { return bf16 ? 2 : 4; }

KVMESH_INLINE Floats read(const void* p, bool bf16, std::int64_t i) {
  return bf16 ? widen(load<Halves>(static_cast<const std::uint16_t*>(p) + i)) : load<Floats>(static_cast<const float*>(p) + i);
}
KVMESH_INLINE void write(void* p, bool bf16, std::int64_t i, Floats x) {
  if (bf16) store(static_cast<std::uint16_t*>(p) + i, narrow(x));
  else store(static_cast<float*>(p) + i, x);
}

KVMESH_INLINE float root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }
KVMESH_INLINE Floats root(Floats x) {
#if defined(__AVX512F__)
  return (Floats)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  return (Floats)_mm_sqrt_ps((__m128)x);
#endif
}

/// f(i) for whole vectors of [0, count), then f's scalar twin g(i) for what is left.
template <typename F, typename G>
KVMESH_INLINE void each(std::int64_t count, const F& f, const G& g) {
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) f(i);
  for (; i < count; ++i) g(i);
}

/// dx of norm(x) · dy, both [width] and followed by zeros up to a whole number of vectors; dy becomes dx.
void norm_backward(const float* x, float* dy, std::int64_t width, float eps) {
  Floats squares = {}, products = {};
  for (std::int64_t i = 0; i < width; i += lanes) {
    const Floats a = load<Floats>(x + i), b = load<Floats>(dy + i);
    squares = fma(a, a, squares);
    products = fma(a, b, products);
  }
  const float n = static_cast<float>(width), inverse = 1.0f / root(sum_lanes(squares) / n + eps);
  const Floats scale = splat(inverse), along = splat(-inverse * inverse * inverse * sum_lanes(products) / n);
  for (std::int64_t i = 0; i < width; i += lanes) store(dy + i, fma(along, load<Floats>(x + i), scale * load<Floats>(dy + i)));
}

void read_row(const void* from, bool bf16, std::int64_t at, std::int64_t width, float* x) {
  read_floats(from, bf16, at, width, x);
  for (std::int64_t i = width; i < round_up(width, lanes); ++i) x[i] = 0;
}

/// One vector of decay: what is taken from p next to the step along u.
KVMESH_INLINE Floats decay_of(const Decay& d, Floats p, Floats u) {
  const Floats along = u * p, all = d.rate * p;
  if (d.rule == DecayRule::plain) return all;
  return d.rule == DecayRule::cautious ? (along >= 0.0f ? all : Floats{}) : (along <= 0.0f ? all : Floats{});
}

/// f on vectors of the first `count` elements of the arrays, the last vector through copies on the stack that are padded with zeros.
template <int inputs, int outputs, typename F>
KVMESH_INLINE void map(std::int64_t count, const float* const (&in)[inputs], float* const (&out)[outputs], const F& f) {
  Floats x[inputs], y[outputs];
  std::int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    for (int a = 0; a < inputs; ++a) x[a] = load<Floats>(in[a] + i);
    f(x, y);
    for (int a = 0; a < outputs; ++a) store(out[a] + i, y[a]);
  }
  if (i == count) return;
  const auto bytes = static_cast<std::size_t>(count - i) * 4;
  for (int a = 0; a < inputs; ++a) {
    x[a] = Floats{};
    __builtin_memcpy(&x[a], in[a] + i, bytes);
  }
  f(x, y);
  for (int a = 0; a < outputs; ++a) __builtin_memcpy(out[a] + i, &y[a], bytes);
}

}  // namespace

void transpose_rows(const void* x, bool bf16, std::int64_t columns, std::int64_t begin, std::int64_t end, void* out, bool out_bf16, std::int64_t stride) {
  for (std::int64_t r = begin; r < end; r += lanes) {
    const std::int64_t height = end - r < lanes ? end - r : lanes;
    for (std::int64_t c = 0; c < columns; c += lanes) {
      const std::int64_t width = columns - c < lanes ? columns - c : lanes;
      Words block[lanes];
      for (int i = 0; i < lanes; ++i) {
        if (i >= height) {
          block[i] = Words{};
        } else if (width == lanes) {
          block[i] = (Words)read(x, bf16, (r + i) * columns + c);
        } else {
          float row[lanes] = {};
          read_floats(x, bf16, (r + i) * columns + c, width, row);
          block[i] = load<Words>(row);
        }
      }
      transpose(block);
      for (int i = 0; i < width; ++i) {
        const std::int64_t at = (c + i) * stride + r;
        if (height == lanes) {
          write(out, out_bf16, at, (Floats)block[i]);
        } else {
          float row[lanes];
          store(row, block[i]);
          write_floats(row, height, out, out_bf16, at);
        }
      }
    }
  }
}

void rms_norm_backward(const void* x, const void* dy, bool bf16, std::int64_t width, float eps, float* dx, void* rounded, void* scratch) {
  float* const a = static_cast<float*>(scratch);
  float* const b = a + round_up(width, lanes);
  read_row(x, bf16, 0, width, a);
  read_row(dy, bf16, 0, width, b);
  norm_backward(a, b, width, eps);
  add(dx, b, width);
  if (rounded) write_floats(dx, width, rounded, true, 0);
}

void append_backward(const AppendBackwardTask& t, void* scratch) {
  const std::int64_t h = t.head_dim, half = h / 2;
  float* const x = static_cast<float*>(scratch);
  float* const d = x + round_up(h, lanes);
  const auto head = [&](const void* gradient, std::int64_t i, std::int64_t at) {
    read_row(t.qkv, t.bf16, at * h, h, x);
    read_row(gradient, t.bf16, i * h, h, d);
    if (t.rope) {
      for (std::int64_t j = 0; j < half; ++j) {
        const float a = d[j], b = d[j + half], cos = t.rope[j], sin = t.rope[j + half];
        d[j] = a * cos + b * sin;
        d[j + half] = b * cos - a * sin;
      }
    }
    norm_backward(x, d, h, t.eps);
    write_floats(d, h, t.dqkv, t.bf16, at * h);
  };
  for (std::int64_t i = 0; i < t.heads; ++i) head(t.dq, i, i);
  for (std::int64_t i = 0; i < t.kv_heads; ++i) head(t.dk, i, t.heads + i);
  __builtin_memcpy(static_cast<char*>(t.dqkv) + (t.heads + t.kv_heads) * h * size_of(t.bf16), t.dv, static_cast<std::size_t>(t.kv_heads * h * size_of(t.bf16)));
}

void relu_squared_backward(const void* hidden, void* dhidden, bool bf16, std::int64_t count) {
  each(
      count, [&](std::int64_t i) { write(dhidden, bf16, i, read(dhidden, bf16, i) * (2.0f * root(read(hidden, bf16, i)))); },
      [&](std::int64_t i) {
        float h, d;
        read_floats(hidden, bf16, i, 1, &h);
        read_floats(dhidden, bf16, i, 1, &d);
        d *= 2.0f * root(h);
        write_floats(&d, 1, dhidden, bf16, i);
      });
}

void softmax_sums(const float* logits, std::int64_t width, float* sums) {
  // The last, partial vector is read with -inf behind it: no weight in the sum, no influence on the maximum.
  const std::int64_t whole = width / lanes * lanes;
  float tail[lanes];
  for (int i = 0; i < lanes; ++i) tail[i] = whole + i < width ? logits[whole + i] : -__builtin_inff();
  Floats top = max(splat(sums[0]), load<Floats>(tail));
  for (std::int64_t i = 0; i < whole; i += lanes) top = max(top, load<Floats>(logits + i));
  const float most = max_lanes(top);
  const Floats m = splat(most);
  Floats total = exp(load<Floats>(tail) - m);
  for (std::int64_t i = 0; i < whole; i += lanes) total = total + exp(load<Floats>(logits + i) - m);
  const Floats before = exp(splat(sums[0]) - m);
  sums[1] = sums[1] * before[0] + sum_lanes(total);
  sums[0] = most;
}

void cross_entropy_backward(const float* logits, std::int64_t width, std::int64_t target, const float* sums, float cap, float scale, void* dlogits, bool bf16) {
  const Floats m = splat(sums[0]), weight = splat(scale / sums[1]);
  const float slope = cap > 0 ? 1.0f / cap : 0.0f;
  const bool is_here = target >= 0 && target < width;
  const float of_target = is_here ? logits[target] : 0.0f;
  const auto gradient = [&](Floats l) {
    const Floats t = slope * l;
    return weight * exp(l - m) * (1.0f - t * t);
  };
  const std::int64_t whole = width / lanes * lanes;
  for (std::int64_t i = 0; i < whole; i += lanes) write(dlogits, bf16, i, gradient(load<Floats>(logits + i)));
  if (whole < width) {
    float tail[lanes];
    for (int i = 0; i < lanes; ++i) tail[i] = whole + i < width ? logits[whole + i] : 0.0f;
    store(tail, gradient(load<Floats>(tail)));
    write_floats(tail, width - whole, dlogits, bf16, whole);
  }
  if (!is_here) return;
  const float t = slope * of_target;
  const Floats p = exp(splat(of_target) - m);
  const float g = scale * (p[0] / sums[1] - 1.0f) * (1.0f - t * t);
  write_floats(&g, 1, dlogits, bf16, target);
}

void round(const float* x, void* bf16, std::int64_t count) { write_floats(x, count, bf16, true, 0); }

void add(float* inout, const float* x, std::int64_t count) {
  map<2, 1>(count, {inout, x}, {inout}, [](const auto& in, auto& out) { out[0] = in[0] + in[1]; });
}

void scale_add(float a, const float* x, float b, float* out, std::int64_t count) {
  map<2, 1>(count, {x, out}, {out}, [&](const auto& in, auto& o) { o[0] = a * in[0] + b * in[1]; });
}

double sum_squares(const float* x, std::int64_t count) {
  constexpr std::int64_t block = 1024;
  double sum = 0;
  for (std::int64_t begin = 0; begin < count; begin += block) {
    const std::int64_t n = count - begin < block ? count - begin : block;
    Floats part = {};
    each(
        n, [&](std::int64_t i) { part = fma(load<Floats>(x + begin + i), load<Floats>(x + begin + i), part); },
        [&](std::int64_t i) { part[0] += x[begin + i] * x[begin + i]; });
    sum += static_cast<double>(sum_lanes(part));
  }
  return sum;
}

void adamw(const AdamwStep& s, float* p, const float* g, float* m, float* v, std::int64_t count) {
  map<4, 3>(count, {p, g, m, v}, {p, m, v}, [&](const auto& in, auto& out) {
    const Floats gradient = s.scale * in[1];
    out[1] = (1.0f - s.beta1) * gradient + s.beta1 * in[2];
    out[2] = (1.0f - s.beta2) * (gradient * gradient) + s.beta2 * in[3];
    const Floats update = (out[1] / s.correction1) / (root(out[2] / s.correction2) + s.eps);
    out[0] = in[0] - (s.lr * update + decay_of(s.decay, in[0], update));
  });
}

void momentum(const MuonStep& s, const float* g, float* m, float* update, std::int64_t count) {
  map<2, 2>(count, {g, m}, {m, update}, [&](const auto& in, auto& out) {
    const Floats gradient = s.scale * in[0];
    out[0] = (1.0f - s.beta) * gradient + s.beta * in[1];
    out[1] = s.beta * (out[0] / s.correction_m) + (1.0f - s.beta) * (gradient / s.correction_g);
  });
}

void apply(const Decay& decay, float rate, float* p, const float* update, std::int64_t count) {
  map<2, 1>(count, {p, update}, {p}, [&](const auto& in, auto& out) { out[0] = in[0] - (rate * in[1] + decay_of(decay, in[0], in[1])); });
}

const TrainKernels train_kernels = {transpose_rows,     rms_norm_backward, append_backward,        relu_squared_backward, attention_backward_scratch,
                                    attention_backward, softmax_sums,      cross_entropy_backward, round,                 add,
                                    sum_squares,        adamw,             momentum,               apply,                 scale_add};

}  // namespace kvmesh::cpu::KVMESH_ISA
