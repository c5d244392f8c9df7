// Muon's matrices against Newton and Schulz's iteration in float64, large enough that their symmetric products are computed by halves.
#include "model/train/optimizer.h"
#include "tests/runtime/test_device.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace kvmesh {
namespace {

using Rows = std::vector<std::vector<double>>;

/// a · bᵀ
Rows times_turned(const Rows& a, const Rows& b) {
  Rows out(a.size(), std::vector<double>(b.size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < b.size(); ++j) {
      for (std::size_t k = 0; k < a[i].size(); ++k) out[i][j] += a[i][k] * b[j][k];
    }
  }
  return out;
}

Rows turned(const Rows& a) {
  Rows out(a[0].size(), std::vector<double>(a.size()));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < a[i].size(); ++j) out[j][i] = a[i][j];
  }
  return out;
}

/// Of x with no more rows than columns.
Rows orthogonal(Rows x, int iterations) {
  double squares = 0;
  for (const auto& row : x) {
    for (const double v : row) squares += v * v;
  }
  for (auto& row : x) {
    for (double& v : row) v /= std::sqrt(squares) + 1e-8;
  }
  for (int n = 0; n < iterations; ++n) {
    const Rows gram = times_turned(x, x), square = times_turned(gram, gram);
    Rows mixed = gram;
    for (std::size_t i = 0; i < gram.size(); ++i) {
      for (std::size_t j = 0; j < gram.size(); ++j) mixed[i][j] = -4.775 * gram[i][j] + 2.0315 * square[i][j];
    }
    const Rows more = times_turned(mixed, turned(x));
    for (std::size_t i = 0; i < x.size(); ++i) {
      for (std::size_t j = 0; j < x[i].size(); ++j) x[i][j] = 3.4445 * x[i][j] + more[i][j];
    }
  }
  return x;
}

TEST(Muon, TheUpdateIsNewtonAndSchulzs) {
  constexpr int iterations = 2;
  const ModelConfig config = parse_config(R"({"seqlen":8,"vocab_size":16,"d_emb":288,"num_layers":1,"q_heads":4,"kv_heads":2,"dtype":"float32"})", "test");
  const ParamLayout layout(config);
  const OptimizerOptions options{.lr = 0.5, .floor = 0.1, .steps = 10, .newton_schulz_steps = iterations, .weight_decay = 0};
  const auto device = test_device(2);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> gradient(static_cast<std::size_t>(layout.size));
  for (float& x : gradient) x = normal(random);

  std::vector<Tensor> moved;
  for (const DType products : {DType::f32, DType::bf16}) {
    Optimizer optimizer(config, layout, *device, products, options, 0, 1);
    const Tensor vector = device->empty(DType::f32, {layout.size}), g = host_tensor(DType::f32, {layout.size});
    device->train_ops().zero(vector);
    std::copy(gradient.begin(), gradient.end(), g.data<float>());
    optimizer.step(0, up(*device, g), 1, vector);
    moved.push_back(down(*device, vector));
  }
  for (const std::size_t which : {3, 4}) {  // fc1 and fc2
    const Matrix& m = layout.matrices[which];
    Rows x(static_cast<std::size_t>(m.rows));
    for (std::size_t r = 0; r < x.size(); ++r) {
      const float* const from = gradient.data() + m.offset + static_cast<std::int64_t>(r) * m.cols;
      x[r].assign(from, from + m.cols);
    }
    const Rows expected = m.rows > m.cols ? turned(orthogonal(turned(x), iterations)) : orthogonal(x, iterations);
    const double rate = options.lr * std::sqrt(std::max(1.0, static_cast<double>(m.cols) / static_cast<double>(m.rows)));
    for (std::size_t i = 0; i < moved.size(); ++i) {
      double wrong = 0, all = 0;
      for (std::int64_t r = 0; r < m.rows; ++r) {
        for (std::int64_t c = 0; c < m.cols; ++c) {
          const double e = -rate * expected[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)], found = moved[i].data<float>()[m.offset + r * m.cols + c];
          wrong += (found - e) * (found - e);
          all += e * e;
        }
      }
      EXPECT_LT(std::sqrt(wrong / all), i == 0 ? 1e-5 : 1e-2) << m.name;
    }
  }
}

}  // namespace
}  // namespace kvmesh
