// Training's operations against float64 twins, and what must not change their bits.
#include "tests/runtime/train_ops_testing.h"

namespace kvmesh {
namespace {

Tensor integers(const std::vector<std::int32_t>& x) {
  const Tensor t = host_tensor(DType::i32, {std::ssize(x)});
  std::copy(x.begin(), x.end(), t.data<std::int32_t>());
  return t;
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
