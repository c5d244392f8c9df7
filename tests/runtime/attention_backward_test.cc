// The slopes of attention, and of the norm and RoPE before it, against float64 twins; the same bits whatever a document's company.
#include "tests/runtime/train_ops_testing.h"

namespace kvmesh {
namespace {

/// Zeros in the device's memory.
Tensor zeros(Device& device, DType dtype, Shape shape) { return up(device, filled(dtype, shape, 0)); }

/// Documents one behind the other in the rows of a ring, as training has them.
std::vector<Segment> documents(const std::vector<std::vector<std::int32_t>>& rows) {
  std::vector<Segment> segments;
  std::int32_t offset = 0;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    std::int64_t start = 0;
    for (const std::int32_t n : rows[row]) {
      segments.push_back({start, start, static_cast<std::int32_t>(row), n, offset});
      start += n;
      offset += n;
    }
  }
  return segments;
}

struct Shapes {
  std::int64_t heads, kv_heads, head_dim, size;
};

TEST(TrainOps, NormAndRopeBackwards) {
  const auto device = test_device(2);
  const Shapes s{4, 2, 20, 16};
  const std::vector<Segment> segments = documents({{5, 2}, {9}});
  const std::int64_t T = 16, all = s.heads + 2 * s.kv_heads, h = s.head_dim, half = h / 2;
  for (const DType dtype : float_types()) {
    for (const bool turns : {true, false}) {
      const Tensor qkv = random_tensor(dtype, {T, all * h}, 1), dq = random_tensor(dtype, {T, s.heads * h}, 2), dk = random_tensor(dtype, {T, s.kv_heads * h}, 3),
                   dv = random_tensor(dtype, {T, s.kv_heads * h}, 4), rope = random_tensor(DType::f32, {s.size, h}, 5), dqkv = unwritten(*device, dtype, {T, all * h});
      const Shape ring{2, s.kv_heads, s.size, h};
      const LayerCache cache{zeros(*device, dtype, ring), zeros(*device, dtype, ring)};
      const Pass pass = device->prepare({}, segments, {});
      device->train_ops().norm_rope_backward(up(*device, qkv), up(*device, dq), up(*device, dk), up(*device, dv), pass, cache, turns ? up(*device, rope) : Tensor(), 1e-2f, dqkv);
      std::vector<double> want;
      for (const Segment& segment : segments) {
        for (std::int64_t i = 0; i < segment.count; ++i) {
          const std::int64_t t = segment.offset + i;
          for (std::int64_t head = 0; head < all; ++head) {
            const std::int64_t keys = s.heads + s.kv_heads;
            const auto part = [&](const Tensor& x, std::int64_t of, std::int64_t at) {
              std::vector<double> y;
              for (std::int64_t d = 0; d < h; ++d) y.push_back(get(x, (t * of + at) * h + d));
              return y;
            };
            std::vector<double> d = head < s.heads ? part(dq, s.heads, head) : head < keys ? part(dk, s.kv_heads, head - s.heads) : part(dv, s.kv_heads, head - keys);
            if (head < keys) {
              for (std::int64_t j = 0; j < half && turns; ++j) {
                const double a = d[j], b = d[j + half], cos = get(rope, i * h + j), sin = get(rope, i * h + j + half);
                d[j] = a * cos + b * sin;
                d[j + half] = b * cos - a * sin;
              }
              d = norm_slope(part(qkv, all, head), d, 1e-2);
            }
            want.insert(want.end(), d.begin(), d.end());
          }
        }
      }
      EXPECT_LT(distance(values(down(*device, dqkv)), want), margin(dtype));
    }
  }
}

struct Slopes {
  std::vector<double> out, dq, dk, dv;
};

/// Attention of documents, and its slopes, in float64. k and v [T, kv_heads · h].
Slopes attention_twin(const Shapes& s, std::span<const Segment> segments, std::int64_t window, const std::vector<double>& q, const std::vector<double>& k, const std::vector<double>& v,
                      const std::vector<double>& dout) {
  const std::int64_t h = s.head_dim, group = s.heads / s.kv_heads;
  Slopes x{std::vector<double>(q.size()), std::vector<double>(q.size()), std::vector<double>(k.size()), std::vector<double>(k.size())};
  for (const Segment& segment : segments) {
    for (std::int64_t i = 0; i < segment.count; ++i) {
      for (std::int64_t head = 0; head < s.heads; ++head) {
        const std::int64_t query = ((segment.offset + i) * s.heads + head) * h, oldest = window < 0 ? 0 : std::max<std::int64_t>(0, i - window);
        const auto key = [&](std::int64_t j) { return ((segment.offset + j) * s.kv_heads + head / group) * h; };
        std::vector<double> p(static_cast<std::size_t>(segment.count)), slope(p.size());
        double sum = 0, delta = 0;
        for (std::int64_t j = oldest; j <= i; ++j) {
          double score = 0;
          for (std::int64_t d = 0; d < h; ++d) score += q[query + d] * k[key(j) + d];
          sum += p[j] = std::exp(score / std::sqrt(static_cast<double>(h)));
        }
        for (std::int64_t j = oldest; j <= i; ++j) {
          p[j] /= sum;
          for (std::int64_t d = 0; d < h; ++d) {
            x.out[query + d] += p[j] * v[key(j) + d];
            slope[j] += dout[query + d] * v[key(j) + d];
          }
          delta += p[j] * slope[j];
        }
        for (std::int64_t j = oldest; j <= i; ++j) {
          const double ds = p[j] * (slope[j] - delta) / std::sqrt(static_cast<double>(h));
          for (std::int64_t d = 0; d < h; ++d) {
            x.dv[key(j) + d] += p[j] * dout[query + d];
            x.dk[key(j) + d] += ds * q[query + d];
            x.dq[query + d] += ds * k[key(j) + d];
          }
        }
      }
    }
  }
  return x;
}

struct Attention {
  Shapes s;
  std::vector<Segment> segments;
  std::int64_t window;
  Tensor q, k, v, dout;  // [T, …], on the host

  Attention(const Shapes& shapes, const std::vector<std::vector<std::int32_t>>& rows, std::int64_t window_, DType dtype, unsigned seed)
      : s(shapes), segments(documents(rows)), window(window_) {
    const std::int64_t T = segments.back().offset + segments.back().count;
    q = random_tensor(dtype, {T, s.heads * s.head_dim}, seed);
    k = random_tensor(dtype, {T, s.kv_heads * s.head_dim}, seed + 1);
    v = random_tensor(dtype, {T, s.kv_heads * s.head_dim}, seed + 2);
    dout = random_tensor(dtype, {T, s.heads * s.head_dim}, seed + 3);
  }

  /// out, dq, dk, dv on the host: of the forward pass and the backward one, to which the result may be given.
  std::vector<Tensor> run(Device& device, const Tensor& result = {}) const {
    const std::int64_t h = s.head_dim;
    const DType dtype = q.dtype();
    const Tensor keys = filled(dtype, {segments.back().place + 1, s.kv_heads, s.size, h}, std::nan("")), vs = copy_of(keys);
    for (const Segment& segment : segments) {
      for (std::int64_t i = 0; i < segment.count; ++i) {
        for (std::int64_t head = 0; head < s.kv_heads; ++head) {
          for (std::int64_t d = 0; d < h; ++d) {
            const std::int64_t slot = ((segment.place * s.kv_heads + head) * s.size + segment.begin % s.size + i) * h + d, row = ((segment.offset + i) * s.kv_heads + head) * h + d;
            set(keys, slot, get(k, row));
            set(vs, slot, get(v, row));
          }
        }
      }
    }
    const LayerCache cache{up(device, keys), up(device, vs)};
    const Tensor queries = up(device, q), out = unwritten(device, dtype, q.shape()), dq = unwritten(device, dtype, q.shape()), dk = unwritten(device, dtype, k.shape()),
                 dv = unwritten(device, dtype, k.shape());
    const Pass pass = device.prepare({}, segments, {});
    device.attention(queries, pass, cache, window, out);
    device.train_ops().attention_backward(queries, pass, cache, window, result.defined() ? up(device, result) : out, up(device, dout), dq, dk, dv);
    return {down(device, out), down(device, dq), down(device, dk), down(device, dv)};
  }
};

TEST(TrainOps, AttentionBackwards) {
  const auto device = test_device(2);
  const std::vector<std::vector<std::int32_t>> rows = {{5, 40, 1}, {70}}, few = {{3, 19}, {34}};
  std::vector<Shapes> shapes = {{4, 2, 16, 72}, {3, 1, 20, 72}, {2, 2, 64, 72}, {2, 1, 96, 72}, {1, 1, 128, 72}, {2, 1, 160, 72}, {1, 1, 256, 72}};
  for (const DType dtype : float_types()) {
    for (const Shapes& s : shapes) {
      for (const std::int64_t window : {-1, 0, 9}) {
        if (emulated() && window == 0 && s.head_dim > 32) continue;
        const Attention a(s, emulated() && s.head_dim > 32 ? few : rows, window, dtype, 7);
        const std::vector<Tensor> got = a.run(*device);
        const Slopes want = attention_twin(s, a.segments, window, values(a.q), values(a.k), values(a.v), values(a.dout));
        const double most = dtype == DType::bf16 ? 1e-2 : 2e-6;
        const std::string what = fmt::format("{} heads of {}, window {}, {}", s.heads, s.head_dim, window, name_of(dtype));
        EXPECT_LT(distance(values(got[0]), want.out), most) << what;
        EXPECT_LT(distance(values(got[3]), want.dv), most) << what;
        if (window == 0) continue;  // one key: nothing moves the weights
        EXPECT_LT(distance(values(got[1]), want.dq), most) << what;
        EXPECT_LT(distance(values(got[2]), want.dk), most) << what;
      }
    }
  }
}

TEST(TrainOps, ADocumentsSlopesDoNotDependOnItsCompany) {
  const auto device = test_device(3);
  const Shapes s{2, 1, 16, 72};
  for (const DType dtype : float_types()) {
    const Attention many(s, {{5, 40, 1}, {20}}, 9, dtype, 7);
    const std::vector<Tensor> all = many.run(*device);
    for (const std::size_t i : {std::size_t{1}, std::size_t{3}}) {
      const Segment segment = many.segments[i];
      Attention alone(s, {{segment.count}}, 9, dtype, 1);
      const auto part = [&](const Tensor& x) { return x.slice(segment.offset, segment.offset + segment.count); };
      alone.q = part(many.q), alone.k = part(many.k), alone.v = part(many.v), alone.dout = part(many.dout);
      const std::vector<Tensor> own = alone.run(*device);
      for (std::size_t j = 0; j < own.size(); ++j) EXPECT_TRUE(same_bytes(own[j], part(all[j]))) << j;
    }
  }
}

// Rows of one length and of several, some of them documents behind each other; the same bits each time.
TEST(TrainOps, AttentionBackwardsByCudnn) {
  const auto device = cudnn_device();
  if (!device) GTEST_SKIP() << "cuDNN is for GPUs";
  for (const std::vector<std::vector<std::int32_t>>& rows : {std::vector<std::vector<std::int32_t>>{{70}, {70}}, {{5, 40, 1}, {70}}, {{20, 20}}}) {
    for (const Shapes& s : {Shapes{4, 2, 64, 72}, {3, 1, 96, 72}, {2, 2, 128, 72}}) {
      for (const std::int64_t window : {-1, 9}) {
        if (emulated() && s.head_dim > 64 && window >= 0) continue;
        const Attention a(s, rows, window, DType::bf16, 7);
        const std::vector<Tensor> got = a.run(*device), again = a.run(*device);
        const Slopes want = attention_twin(s, a.segments, window, values(a.q), values(a.k), values(a.v), values(a.dout));
        const std::string what = fmt::format("{} rows, {} heads of {}, window {}", rows.size(), s.heads, s.head_dim, window);
        EXPECT_LT(distance(values(got[0]), want.out), 1e-2) << what;
        EXPECT_LT(distance(values(got[1]), want.dq), 1e-2) << what;
        EXPECT_LT(distance(values(got[2]), want.dk), 1e-2) << what;
        EXPECT_LT(distance(values(got[3]), want.dv), 1e-2) << what;
        for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(same_bytes(got[i], again[i])) << what << ", " << i;
      }
    }
  }
}

// What is left to our own kernels has their bits, and is told once; the rest has others. Where cuDNN draws the line a real one decides for itself.
TEST(TrainOps, WhatCudnnDoesNotDifferentiateIsToldOnce) {
  const auto device = cudnn_device();
  if (!device || !emulated()) GTEST_SKIP() << "only where cuDNN is emulated";
  const auto own = test_device(1);
  struct Case {
    Shapes shapes;
    std::vector<std::vector<std::int32_t>> rows;
    DType dtype;
    const char* note;  // empty: cuDNN differentiates it
  };
  const Case cases[] = {{{2, 1, 8, 40}, {{33}, {33}}, DType::bf16, ""},
                        {{2, 1, 8, 40}, {{33, 5}, {20}}, DType::bf16, ""},
                        {{2, 1, 8, 40}, {{33}}, DType::f32, "--attention cudnn: float32 is attended by kvmesh's own kernels"},
                        {{2, 1, 20, 40}, {{33}}, DType::bf16, "of 20 elements (hidden_dim should be multiple of 8)"},
                        {{1, 1, 136, 40}, {{33}}, DType::bf16, "does not differentiate rows of one length with 1 query heads over 1 key heads of 136 elements (hidden_dim should be less than or equal to 128)"},
                        {{1, 1, 136, 40}, {{3, 5}}, DType::bf16, "does not differentiate rows of several lengths with 1 query heads over 1 key heads of 136 elements"},
                        {{1, 1, 8, 800}, {{730}}, DType::bf16, "want more than 1 MiB to differentiate are left to kvmesh's own kernels"}};
  for (const Case& c : cases) {
    const Attention a(c.shapes, c.rows, -1, c.dtype, 3);
    const std::vector<Tensor> native = a.run(*own);
    testing::internal::CaptureStderr();
    const std::vector<Tensor> got = a.run(*device, native[0]);
    const std::string told = testing::internal::GetCapturedStderr();
    testing::internal::CaptureStderr();
    a.run(*device);
    EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
    EXPECT_NE(told.find(c.note), std::string::npos) << told;
    EXPECT_EQ(told.empty(), *c.note == '\0') << told;
    bool same = true;
    for (std::size_t i = 1; i < got.size(); ++i) same = same && same_bytes(got[i], native[i]);
    EXPECT_EQ(same, *c.note != '\0') << c.note;
  }
}

}  // namespace
}  // namespace kvmesh
