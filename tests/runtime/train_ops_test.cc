// Training's operations against float64 twins, and what must not change their bits.
#include "runtime/train_ops.h"
#include "tests/runtime/device_testing.h"

#include <cmath>
#include <numeric>

namespace kvmesh {
namespace {

/// Zeros in the device's memory, of what has to be added to; or not-a-numbers, of what has to be written.
Tensor zeros(Device& device, DType dtype, Shape shape) { return up(device, filled(dtype, shape, 0)); }
Tensor unwritten(Device& device, DType dtype, Shape shape) { return up(device, filled(dtype, shape, std::nan(""))); }

Tensor integers(const std::vector<std::int32_t>& x) {
  const Tensor t = host_tensor(DType::i32, {std::ssize(x)});
  std::copy(x.begin(), x.end(), t.data<std::int32_t>());
  return t;
}

/// |got - want| / |want|
double distance(const std::vector<double>& got, const std::vector<double>& want) {
  double wrong = 0, all = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    wrong += (got[i] - want[i]) * (got[i] - want[i]);
    all += want[i] * want[i];
  }
  return std::sqrt(wrong / all);  // a not-a-number compares less than nothing
}

double margin(DType dtype) { return dtype == DType::bf16 ? 4e-3 : 1e-6; }

bool same_bytes(const Tensor& a, const Tensor& b) { return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0; }

/// dx of y = x / sqrt(mean(x²) + eps)
std::vector<double> norm_slope(const std::vector<double>& x, const std::vector<double>& dy, double eps) {
  const auto n = static_cast<double>(x.size());
  const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0), products = std::inner_product(x.begin(), x.end(), dy.begin(), 0.0), r = 1 / std::sqrt(squares / n + eps);
  std::vector<double> dx(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) dx[i] = r * dy[i] - r * r * r * products / n * x[i];
  return dx;
}

TEST(TrainOps, PacksAsTheHostDoes) {
  const auto device = test_device(2);
  for (const auto& [k, n] : {std::pair{33, 70}, {64, 128}, {5, 3}}) {
    for (const DType source : float_types()) {
      for (const DType dtype : float_types()) {
        if (source == DType::bf16 && dtype == DType::f32) continue;
        const Tensor x = random_tensor(source, {k, n}, 1), host = host_tensor(DType::u8, {static_cast<std::int64_t>(device->weight_bytes(dtype, k, n))});
        device->pack_weight(x, dtype, host.raw());
        const Weight w{k, n, dtype, unwritten(*device, DType::f32, {(host.numel() + 3) / 4}).view({(host.numel() + 3) / 4})};
        const Weight bytes{k, n, dtype, Tensor({}, w.data.raw(), DType::u8, {host.numel()})};
        device->train_ops().pack(up(*device, x), bytes);
        EXPECT_TRUE(same_bytes(down(*device, bytes.data), host)) << k << " × " << n;
      }
    }
  }
}

TEST(TrainOps, TransposesConvertsAndZeroes) {
  const auto device = test_device(2);
  TrainOps& ops = device->train_ops();
  for (const auto& [rows, columns] : {std::pair{37, 70}, {1, 5}, {64, 33}}) {
    for (const auto& [from, to] : {std::pair{DType::f32, DType::f32}, {DType::f32, DType::bf16}, {DType::bf16, DType::bf16}}) {
      const Tensor x = random_tensor(from, {rows, columns}, 2), turned = host_tensor(to, {columns, rows}), same = host_tensor(to, {rows, columns});
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t c = 0; c < columns; ++c) set(turned, c * rows + r, get(x, r * columns + c)), set(same, r * columns + c, get(x, r * columns + c));
      }
      const Tensor a = unwritten(*device, to, {columns, rows}), b = unwritten(*device, to, {rows, columns});
      ops.transpose(up(*device, x), a);
      ops.convert(up(*device, x), b);
      EXPECT_TRUE(same_bytes(down(*device, a), turned));
      EXPECT_TRUE(same_bytes(down(*device, b), same));
      ops.zero(b);
      EXPECT_TRUE(same_bytes(down(*device, b), filled(to, {rows, columns}, 0)));
    }
  }
}

TEST(TrainOps, MirrorsColumns) {
  const auto device = test_device(2);
  const std::int64_t n = 150;
  for (const auto& [from, width] : {std::pair{0, 64}, {64, 64}, {128, 22}, {0, 150}}) {
    const Tensor columns = random_tensor(DType::f32, {from + width, width}, 1), before = random_tensor(DType::f32, {n, n}, 2), want = copy_of(before), there = up(*device, before);
    for (std::int64_t i = 0; i < from + width; ++i) {
      for (std::int64_t j = 0; j < width; ++j) {
        set(want, i * n + from + j, get(columns, i * width + j));
        if (i < from) set(want, (from + j) * n + i, get(columns, i * width + j));
      }
    }
    device->train_ops().mirror(up(*device, columns), from, there);
    EXPECT_TRUE(same_bytes(down(*device, there), want)) << from;
  }
}

TEST(TrainOps, NormBackwards) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    for (const std::int64_t width : {24, 301}) {
      const std::int64_t rows = 3;
      const Tensor x = random_tensor(dtype, {rows, width}, 3, 2), dy = random_tensor(dtype, {rows, width}, 4), before = random_tensor(DType::f32, {rows, width}, 5);
      const Tensor dx = up(*device, before), rounded = dtype == DType::bf16 ? unwritten(*device, dtype, {rows, width}) : Tensor();
      device->train_ops().rms_norm_backward(up(*device, x), up(*device, dy), 1e-2f, dx, rounded);
      const Tensor got = down(*device, dx);
      std::vector<double> want = values(before);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::vector<double> xs = values(x.slice(r, r + 1)), slope = norm_slope(xs, values(dy.slice(r, r + 1)), 1e-2);
        for (std::int64_t i = 0; i < width; ++i) want[static_cast<std::size_t>(r * width + i)] += slope[static_cast<std::size_t>(i)];
      }
      EXPECT_LT(distance(values(got), want), 1e-6);
      if (!rounded.defined()) continue;
      const Tensor expected = host_tensor(dtype, {rows, width});
      for (std::int64_t i = 0; i < got.numel(); ++i) set(expected, i, get(got, i));
      EXPECT_TRUE(same_bytes(down(*device, rounded), expected));
    }
  }
}

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

  /// out, dq, dk, dv on the host: of the forward pass and the backward one.
  std::vector<Tensor> run(Device& device) const {
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
    device.train_ops().attention_backward(queries, pass, cache, window, out, up(device, dout), dq, dk, dv);
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

TEST(TrainOps, ReluSquaredBackwards) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    const std::int64_t n = 333;
    const Tensor x = random_tensor(dtype, {n}, 1), dhidden = random_tensor(dtype, {n}, 2), hidden = host_tensor(dtype, {n});
    std::vector<double> want;
    for (std::int64_t i = 0; i < n; ++i) {
      set(hidden, i, std::pow(std::max(get(x, i), 0.0), 2));
      want.push_back(get(dhidden, i) * 2 * std::sqrt(get(hidden, i)));
    }
    const Tensor there = up(*device, dhidden);
    device->train_ops().relu_squared_backward(up(*device, hidden), there);
    EXPECT_LT(distance(values(down(*device, there)), want), margin(dtype));
  }
}

TEST(TrainOps, CrossEntropyInParts) {
  const auto device = test_device(2);
  TrainOps& ops = device->train_ops();
  const std::int64_t R = 5, V = 300;
  const std::vector<std::int32_t> targets = {0, -1, 299, 128, 127};
  const float scale = 0.25f;
  for (const float cap : {0.0f, 15.0f}) {
    for (const DType dtype : float_types()) {
      for (const std::vector<std::int64_t>& cuts : {std::vector<std::int64_t>{0, 300}, {0, 128, 256, 300}}) {
        const Tensor logits = random_tensor(DType::f32, {R, V}, 9, 4), sums = unwritten(*device, DType::f32, {R, 3}), ids = up(*device, integers(targets));
        std::vector<Tensor> parts;
        for (std::size_t i = 0; i + 1 < cuts.size(); ++i) {
          const std::int64_t width = cuts[i + 1] - cuts[i];
          const Tensor part = host_tensor(DType::f32, {R, width});
          for (std::int64_t j = 0; j < R * width; ++j) set(part, j, get(logits, j / width * V + cuts[i] + j % width));
          parts.push_back(up(*device, part));
          ops.softmax_sums(parts.back(), ids, cuts[i], sums);
        }
        const Tensor found = down(*device, sums);
        std::vector<double> want(static_cast<std::size_t>(R * V)), got(want.size());
        for (std::int64_t r = 0; r < R; ++r) {
          double sum = 0;
          for (std::int64_t j = 0; j < V; ++j) sum += std::exp(get(logits, r * V + j));
          EXPECT_NEAR(std::log(get(found, 3 * r + 1)) + get(found, 3 * r), std::log(sum), 1e-5);
          const std::int32_t target = targets[static_cast<std::size_t>(r)];
          if (target < 0) continue;
          EXPECT_EQ(get(found, 3 * r + 2), get(logits, r * V + target));
          for (std::int64_t j = 0; j < V; ++j) {
            const double l = get(logits, r * V + j), t = cap > 0 ? l / cap : 0;
            want[static_cast<std::size_t>(r * V + j)] = scale * (std::exp(l) / sum - (j == target)) * (1 - t * t);
          }
        }
        for (std::size_t i = 0; i < parts.size(); ++i) {
          const std::int64_t width = cuts[i + 1] - cuts[i];
          const Tensor to = dtype == DType::f32 ? parts[i] : unwritten(*device, dtype, {R, width});  // float32: in place
          ops.cross_entropy_backward(parts[i], ids, cuts[i], sums, cap, scale, to);
          const Tensor here = down(*device, to);
          for (std::int64_t j = 0; j < R * width; ++j) got[static_cast<std::size_t>(j / width * V + cuts[i] + j % width)] = get(here, j);
        }
        EXPECT_LT(distance(got, want), margin(dtype));
        for (std::int64_t j = 0; j < V; ++j) ASSERT_EQ(got[static_cast<std::size_t>(V + j)], 0) << "the masked target";
      }
    }
  }
}

TEST(TrainOps, RowsAreAddedInTheOrderOfTheTokens) {
  const auto device = test_device(3);
  const std::int64_t D = 150, V = 9;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 100; ++i) ids.push_back(i * i % 7 + (i > 60));
  const Tensor dx = random_tensor(DType::f32, {std::ssize(ids), D}, 1), table = random_tensor(DType::f32, {V, D}, 2), there = up(*device, table);
  device->train_ops().scatter_rows(up(*device, integers(ids)), up(*device, dx), there);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    for (std::int64_t d = 0; d < D; ++d) table.data<float>()[ids[t] * D + d] += dx.data<float>()[static_cast<std::int64_t>(t) * D + d];
  }
  EXPECT_TRUE(same_bytes(down(*device, there), table));
}

TEST(TrainOps, SumsOfSquares) {
  const auto device = test_device(3);
  const std::int64_t block = TrainOps::square_block, n = 2 * block + 77;
  const Tensor x = random_tensor(DType::f32, {n}, 1), there = up(*device, x), sums = device->counterpart(host_tensor(DType::f64, {3}));
  device->train_ops().square_sums(there, sums);
  const Tensor got = down(*device, sums);
  double all = 0;
  for (std::int64_t i = 0; i < 3; ++i) {
    double sum = 0;
    for (std::int64_t j = i * block; j < std::min(n, (i + 1) * block); ++j) sum += get(x, j) * get(x, j);
    EXPECT_NEAR(got.data<double>()[i], sum, 1e-6 * sum);
    all += got.data<double>()[i];
  }
  EXPECT_EQ(device->train_ops().sum_squares(there), all);
}

TEST(TrainOps, OptimizersSteps) {
  const auto device = test_device(2);
  TrainOps& ops = device->train_ops();
  const std::int64_t n = 301;
  const Tensor p = random_tensor(DType::f32, {n}, 1), g = random_tensor(DType::f32, {n}, 2), m = random_tensor(DType::f32, {n}, 3), v = host_tensor(DType::f32, {n});
  for (std::int64_t i = 0; i < n; ++i) set(v, i, std::pow(get(m, i), 2));
  const auto decayed = [](const Decay& d, double at, double u) {
    const bool decays = d.rule == DecayRule::plain || (d.rule == DecayRule::cautious ? u * at >= 0 : u * at <= 0);
    return decays ? static_cast<double>(d.rate) * at : 0.0;
  };
  for (const DecayRule rule : {DecayRule::cautious, DecayRule::original, DecayRule::plain}) {
    const AdamwStep step{.lr = 0.03f, .correction1 = 0.5f, .correction2 = 0.25f, .scale = 2, .decay = {0.125f, rule}};
    const Tensor ps = up(*device, p), ms = up(*device, m), vs = up(*device, v);
    ops.adamw(step, ps, up(*device, g), ms, vs);
    std::vector<double> new_p, new_m, new_v, applied;
    for (std::int64_t i = 0; i < n; ++i) {
      const double gradient = 2 * get(g, i), mean = (1 - double{step.beta1}) * gradient + step.beta1 * get(m, i), square = (1 - double{step.beta2}) * gradient * gradient + step.beta2 * get(v, i);
      const double u = (mean / 0.5) / (std::sqrt(square / 0.25) + step.eps);
      new_m.push_back(mean);
      new_v.push_back(square);
      new_p.push_back(get(p, i) - step.lr * u - decayed(step.decay, get(p, i), u));
      applied.push_back(get(p, i) - 0.5 * get(g, i) - decayed(step.decay, get(p, i), get(g, i)));
    }
    EXPECT_LT(distance(values(down(*device, ps)), new_p), 1e-6);
    EXPECT_LT(distance(values(down(*device, ms)), new_m), 1e-6);
    EXPECT_LT(distance(values(down(*device, vs)), new_v), 1e-6);
    const Tensor moved = up(*device, p);
    ops.apply(step.decay, 0.5f, moved, up(*device, g));
    EXPECT_LT(distance(values(down(*device, moved)), applied), 1e-6);
  }
  const MuonStep step{.beta = 0.75f, .correction_m = 0.5f, .correction_g = 0.25f, .scale = 2};
  const Tensor ms = up(*device, m), update = up(*device, g), sum = up(*device, p);  // the update takes the gradient's place
  ops.momentum(step, update, ms, update);
  ops.scale_add(2, up(*device, g), -0.5f, sum);
  std::vector<double> means, updates, sums;
  for (std::int64_t i = 0; i < n; ++i) {
    means.push_back(0.25 * 2 * get(g, i) + 0.75 * get(m, i));
    updates.push_back(0.75 * means.back() / 0.5 + 0.25 * 2 * get(g, i) / 0.25);
    sums.push_back(2 * get(g, i) - 0.5 * get(p, i));
  }
  EXPECT_LT(distance(values(down(*device, ms)), means), 1e-6);
  EXPECT_LT(distance(values(down(*device, update)), updates), 1e-6);
  EXPECT_LT(distance(values(down(*device, sum)), sums), 1e-6);
  const Tensor left = copy_of(p);
  ops.add_on_host(left, g);
  for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(left.data<float>()[i], p.data<float>()[i] + g.data<float>()[i]);
}

}  // namespace
}  // namespace kvmesh
