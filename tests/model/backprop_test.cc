// The loss and its gradient against a naive model in float64 and its central differences.
#include "model/train/backprop.h"
#include "tests/runtime/test_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace kvmesh {
namespace {

ModelConfig small_config(const std::string& pattern = "L", std::int64_t window = 0) {
  return parse_config(fmt::format(R"({{"seqlen":48,"vocab_size":70,"d_emb":24,"num_layers":2,"q_heads":4,"kv_heads":2,"dtype":"float32","window_pattern":"{}"{}}})", pattern,
                                  window ? fmt::format(R"(,"local_window_size":{})", window) : ""),
                      "test");
}

/// Rows of tokens: `lengths` of the documents of each row; a few targets are masked.
TrainBatch make_batch(const ModelConfig& c, const std::vector<std::vector<std::int32_t>>& lengths, unsigned seed) {
  std::mt19937 random(seed);
  TrainBatch batch;
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    std::int64_t start = 0;
    for (const std::int32_t n : lengths[row]) {
      batch.segments.push_back({start, start, static_cast<std::int32_t>(row), n, static_cast<std::int32_t>(batch.ids.size())});
      for (std::int32_t i = 0; i < n; ++i) {
        batch.ids.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(c.vocab_size)));
        batch.targets.push_back(random() % 8 == 0 ? -1 : static_cast<std::int32_t>(random() % static_cast<unsigned>(c.vocab_size)));
      }
      start += n;
    }
  }
  return batch;
}

/// The contract's section 2, word for word, in float64; parameters as ParamLayout lays them.
struct Naive {
  const ModelConfig& c;
  const ParamLayout& layout;
  std::vector<double> p;

  static std::vector<double> norm(const double* x, std::int64_t n, double eps) {
    double mean = 0;
    for (std::int64_t i = 0; i < n; ++i) mean += x[i] * x[i] / static_cast<double>(n);
    std::vector<double> y(x, x + n);
    for (double& v : y) v /= std::sqrt(mean + eps);
    return y;
  }
  std::vector<double> times(const std::vector<double>& x, const Matrix& m) const {
    std::vector<double> y(static_cast<std::size_t>(m.cols));
    for (std::int64_t r = 0; r < m.rows; ++r) {
      for (std::int64_t j = 0; j < m.cols; ++j) y[static_cast<std::size_t>(j)] += x[static_cast<std::size_t>(r)] * p[static_cast<std::size_t>(m.offset + r * m.cols + j)];
    }
    return y;
  }
  double loss(const TrainBatch& batch) const {
    const std::int64_t D = c.d_emb, h = c.head_dim(), H = c.q_heads, K = c.kv_heads;
    const auto layers = c.layers();
    double nats = 0;
    for (const Segment& s : batch.segments) {
      std::vector<std::vector<double>> x;
      for (std::int32_t i = 0; i < s.count; ++i) {
        const double* e = &p[static_cast<std::size_t>(batch.ids[static_cast<std::size_t>(s.offset + i)] * D)];
        x.emplace_back(e, e + D);
      }
      for (std::size_t l = 0; l < layers.size(); ++l) {
        const Matrix* m = &layout.matrices[1 + 4 * l];
        std::vector<std::vector<double>> qkv;
        for (std::int64_t t = 0; t < s.count; ++t) {
          auto y = times(norm(x[static_cast<std::size_t>(t)].data(), D, c.norm_eps), m[0]);
          for (std::int64_t head = 0; head < H + K; ++head) {
            auto z = norm(&y[static_cast<std::size_t>(head * h)], h, c.norm_eps);
            for (std::int64_t i = 0; i < h / 2; ++i) {
              const double angle = layers[l].rope ? static_cast<double>(t) / std::pow(c.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(h)) : 0;
              const double a = z[static_cast<std::size_t>(i)], b = z[static_cast<std::size_t>(i + h / 2)];
              y[static_cast<std::size_t>(head * h + i)] = a * std::cos(angle) - b * std::sin(angle);
              y[static_cast<std::size_t>(head * h + i + h / 2)] = b * std::cos(angle) + a * std::sin(angle);
            }
          }
          qkv.push_back(y);
        }
        for (std::int64_t t = s.count - 1; t >= 0; --t) {
          std::vector<double> out;
          for (std::int64_t head = 0; head < H; ++head) {
            const std::int64_t key_head = H + head / (H / K), value_head = key_head + K;
            std::vector<double> w(static_cast<std::size_t>(t + 1));
            double sum = 0;
            for (std::int64_t j = 0; j <= t; ++j) {
              if (layers[l].window >= 0 && j < t - layers[l].window) continue;
              double dot = 0;
              for (std::int64_t i = 0; i < h; ++i) dot += qkv[static_cast<std::size_t>(t)][static_cast<std::size_t>(head * h + i)] * qkv[static_cast<std::size_t>(j)][static_cast<std::size_t>(key_head * h + i)];
              sum += w[static_cast<std::size_t>(j)] = std::exp(dot / std::sqrt(static_cast<double>(h)));
            }
            for (std::int64_t i = 0; i < h; ++i) {
              double v = 0;
              for (std::int64_t j = 0; j <= t; ++j) v += w[static_cast<std::size_t>(j)] / sum * qkv[static_cast<std::size_t>(j)][static_cast<std::size_t>(value_head * h + i)];
              out.push_back(v);
            }
          }
          const auto y = times(out, m[1]);
          for (std::size_t i = 0; i < y.size(); ++i) x[static_cast<std::size_t>(t)][i] += y[i];
        }
        for (auto& row : x) {
          auto hidden = times(norm(row.data(), D, c.norm_eps), m[2]);
          for (double& v : hidden) v = std::max(v, 0.0) * std::max(v, 0.0);
          const auto y = times(hidden, m[3]);
          for (std::size_t i = 0; i < y.size(); ++i) row[i] += y[i];
        }
      }
      for (std::int32_t i = 0; i < s.count; ++i) {
        const std::int32_t target = batch.targets[static_cast<std::size_t>(s.offset + i)];
        if (target < 0) continue;
        auto logits = times(norm(x[static_cast<std::size_t>(i)].data(), D, c.norm_eps), layout.matrices.back());
        double sum = 0;
        for (double& v : logits) {
          if (c.logit_soft_cap > 0) v = c.logit_soft_cap * std::tanh(v / c.logit_soft_cap);
          sum += std::exp(v);
        }
        nats += std::log(sum) - logits[static_cast<std::size_t>(target)];
      }
    }
    return nats;
  }
};

/// The loss, and in `gradient` on the host that of `scale` times it, with parameters [layout.size] on the host.
LossSum gradient_of(const ModelConfig& c, const ParamLayout& layout, Device& device, DType dtype, const Backprop::Options& options, const Tensor& vector, const TrainBatch& batch, float scale,
                    const Tensor& gradient) {
  for (float& x : gradient.span<float>()) x = std::nanf("");  // all of it is to be written
  const Tensor there = up(device, gradient);
  Backprop backprop(c, dtype, device, layout, options);
  backprop.set_parameters(up(device, vector));
  const LossSum sum = backprop.loss_and_gradient(batch, scale, there);
  device.copy(there, gradient);
  const LossSum again = backprop.loss(batch);
  EXPECT_EQ(sum.nats, again.nats);
  EXPECT_EQ(sum.tokens, again.tokens);
  return sum;
}

class Backwards : public testing::Test {
 protected:
  /// Relative distance of gradients at random elements of every matrix, the worst matrix; and of the loss.
  void compare(const ModelConfig& c, const TrainBatch& batch, DType dtype, bool recompute, double tolerance) { compare(c, batch, dtype, recompute, tolerance, *test_device(2)); }
  void compare(const ModelConfig& c, const TrainBatch& batch, DType dtype, bool recompute, double tolerance, Device& device) {
    const ParamLayout layout(c);
    const Tensor vector = host_tensor(DType::f32, {layout.size}), gradient = host_tensor(DType::f32, {layout.size});
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (float& x : vector.span<float>()) x = 0;
    for (const Matrix& m : layout.matrices) {
      const float deviation = m.group == Group::embed ? 1.0f : 0.7f / std::sqrt(static_cast<float>(m.rows));
      for (float& x : layout.of(m, vector).span<float>()) {
        x = normal(random) * deviation;
        if (dtype == DType::bf16) x = bfloat16(x);
      }
    }
    const float scale = 0.125f;
    const LossSum sum = gradient_of(c, layout, device, dtype, {.rows = 3, .recompute = recompute}, vector, batch, scale, gradient);
    Naive naive{c, layout, {vector.span<float>().begin(), vector.span<float>().end()}};
    const double expected = naive.loss(batch);
    EXPECT_NEAR(sum.nats, expected, tolerance * expected);
    EXPECT_EQ(sum.tokens, std::ssize(batch.targets) - std::count(batch.targets.begin(), batch.targets.end(), -1));
    for (const Matrix& m : layout.matrices) {
      double squares = 0, wrong = 0;
      for (int i = 0; i < 10; ++i) {
        std::int64_t at = m.offset + static_cast<std::int64_t>(random() % static_cast<unsigned>(m.size()));
        if (m.group == Group::embed && i % 4 != 0) at = m.offset + batch.ids[random() % batch.ids.size()] * m.cols + at % m.cols;
        double& x = naive.p[static_cast<std::size_t>(at)];
        const double old = x, step = 1e-5;
        x = old + step;
        const double more = naive.loss(batch);
        x = old - step;
        const double less = naive.loss(batch);
        x = old;
        const double slope = scale * (more - less) / (2 * step);
        squares += slope * slope;
        wrong += (gradient.data<float>()[at] - slope) * (gradient.data<float>()[at] - slope);
      }
      EXPECT_LT(std::sqrt(wrong / squares), 10 * tolerance) << m.name;
    }
  }
};

const std::vector<std::vector<std::int32_t>> documents = {{5, 30, 13}, {48}, {1, 17}};

TEST_F(Backwards, Float32) {
  const ModelConfig c = small_config();
  compare(c, make_batch(c, documents, 1), DType::f32, false, 1e-5);
}

TEST_F(Backwards, Recomputed) {
  const ModelConfig c = small_config();
  compare(c, make_batch(c, {{48}, {7}}, 2), DType::f32, true, 1e-5);
}

TEST_F(Backwards, Windows) {
  for (const std::string pattern : {"S", "SL"}) {
    const ModelConfig c = small_config(pattern, 9);
    compare(c, make_batch(c, documents, 3), DType::f32, false, 1e-5);
  }
}

TEST_F(Backwards, BFloat16) {
  const ModelConfig c = small_config();
  compare(c, make_batch(c, documents, 4), DType::bf16, false, 4e-3);
}

/// Rows of one length, of several, and documents.
TEST_F(Backwards, BFloat16ByCudnn) {
  const auto device = cudnn_device();
  if (!device) GTEST_SKIP() << "cuDNN is for GPUs";
  ModelConfig c = small_config("SL", 9);
  c.d_emb = 8 * c.q_heads;
  for (const auto& rows : {std::vector<std::vector<std::int32_t>>{{48}, {48}}, {{48}, {7}}, documents}) compare(c, make_batch(c, rows, 4), DType::bf16, false, 4e-3, *device);
}

/// Many blocks of queries and keys in attention, and more tokens than meet the vocabulary at once.
TEST_F(Backwards, LongRows) {
  ModelConfig c = small_config();
  c.seqlen = 400;
  c.num_layers = 1;
  c.d_emb = 8;
  c.vocab_size = 11;
  const TrainBatch batch = make_batch(c, {{400}, {390, 10}, {300}}, 5);
  const auto device = test_device(2);
  const ParamLayout layout(c);
  const Tensor vector = host_tensor(DType::f32, {layout.size}), whole = host_tensor(DType::f32, {layout.size});
  initialize(c, layout, Init::copying, 3, vector);
  gradient_of(c, layout, *device, DType::f32, {.rows = 3}, vector, batch, 1, whole);
  Naive naive{c, layout, {vector.span<float>().begin(), vector.span<float>().end()}};
  std::mt19937 random(3);
  for (const Matrix& m : layout.matrices) {
    double squares = 0, wrong = 0;
    for (int i = 0; i < 5; ++i) {
      const std::int64_t at = m.offset + static_cast<std::int64_t>(random() % static_cast<unsigned>(m.size()));
      double& x = naive.p[static_cast<std::size_t>(at)];
      const double old = x, step = 1e-5;
      x = old + step;
      const double more = naive.loss(batch);
      x = old - step;
      const double slope = (more - naive.loss(batch)) / (2 * step);
      x = old;
      squares += slope * slope;
      wrong += (whole.data<float>()[at] - slope) * (whole.data<float>()[at] - slope);
    }
    EXPECT_LT(std::sqrt(wrong), 1e-4 * std::sqrt(squares) + 1e-9) << m.name;
  }
}

/// More entries than meet the tokens at once. Logits that are computed again are those that are kept.
TEST_F(Backwards, PartsOfTheVocabulary) {
  ModelConfig c = small_config();
  c.seqlen = 8;
  c.num_layers = 1;
  c.d_emb = 8;
  c.vocab_size = 20011;
  ASSERT_EQ(Backprop::head_cut(c, 1 << 20, false).parts, 3);
  const TrainBatch batch = make_batch(c, {{8}, {3}}, 8);
  compare(c, batch, DType::f32, false, 1e-5);
  const auto device = test_device(2);
  const ParamLayout layout(c);
  const Tensor vector = host_tensor(DType::f32, {layout.size}), kept = host_tensor(DType::f32, {layout.size}), again = host_tensor(DType::f32, {layout.size});
  initialize(c, layout, Init::copying, 3, vector);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    gradient_of(c, layout, *device, dtype, {.rows = 2}, vector, batch, 1, kept);
    gradient_of(c, layout, *device, dtype, {.rows = 2, .recompute = true}, vector, batch, 1, again);
    for (const Matrix& m : layout.matrices) EXPECT_EQ(std::memcmp(layout.of(m, kept).raw(), layout.of(m, again).raw(), static_cast<std::size_t>(m.size()) * 4), 0) << m.name;
  }
}

TEST_F(Backwards, TheLogitsMemoryIsBounded) {
  ModelConfig c = small_config();
  for (const std::int64_t vocab : {1, 70, 8192, 8193, 50304, 262144, 5000000}) {
    c.vocab_size = vocab;
    for (const bool recompute : {false, true}) {
      const Backprop::HeadCut cut = Backprop::head_cut(c, 1 << 20, recompute);
      EXPECT_LE(cut.part, Backprop::vocabulary_part);
      EXPECT_LE(cut.tokens, Backprop::head_tokens);
      EXPECT_LE(cut.slots * cut.part * cut.tokens * 4, Backprop::logit_bytes);
      EXPECT_TRUE(cut.part * cut.parts >= vocab && cut.part * (cut.parts - 1) < vocab);
      EXPECT_TRUE(recompute ? cut.slots == 1 : vocab > 65536 || cut.slots == cut.parts) << vocab;
    }
  }
}

TEST_F(Backwards, WhatIsOutsideTheVocabularyIsRefused) {
  const ModelConfig c = small_config();
  const auto device = test_device(1);
  const ParamLayout layout(c);
  const Tensor vector = host_tensor(DType::f32, {layout.size}), gradient = host_tensor(DType::f32, {layout.size});
  initialize(c, layout, Init::copying, 3, vector);
  for (const bool id : {true, false}) {
    for (const std::int32_t bad : {70, -2}) {
      TrainBatch batch = make_batch(c, {{5}}, 1);
      (id ? batch.ids : batch.targets)[3] = bad;
      EXPECT_THROW(gradient_of(c, layout, *device, DType::f32, {}, vector, batch, 1, gradient), Error);
    }
  }
}

// What may be sent while the rest is computed: nothing changes any more, and from the vector's end on.
TEST_F(Backwards, TellsOfEachMatrixThatIsComplete) {
  const auto device = test_device(2);
  ModelConfig parts = small_config();  // of the vocabulary, whose gradients are columns of one matrix
  parts.d_emb = 8;
  parts.num_layers = 1;
  parts.vocab_size = Backprop::vocabulary_part + 8;
  ASSERT_EQ(Backprop::head_cut(parts, 1 << 20, false).parts, 2);
  for (const auto& [config, dtype, recompute] : {std::tuple{small_config(), DType::f32, false}, {small_config(), DType::f32, true}, {small_config(), DType::bf16, false},
                                                 {small_config(), DType::bf16, true}, {parts, DType::f32, false}, {parts, DType::bf16, true}}) {
    const ParamLayout layout(config);
    Backprop backprop(config, dtype, *device, layout, {.rows = 2, .recompute = recompute});
    const Tensor vector = host_tensor(DType::f32, {layout.size}), then = host_tensor(DType::f32, {layout.size});
    initialize(config, layout, Init::copying, 4, vector);
    backprop.set_parameters(up(*device, vector));
    std::fill(then.span<float>().begin(), then.span<float>().end(), 1e9f);
    const Tensor gradient = up(*device, then);
    std::vector<std::string> told;
    const auto part = [](const Matrix& m, const Tensor& x) { return x.slice(m.offset, m.offset + m.size()); };
    backprop.loss_and_gradient(make_batch(config, {{48}, {20, 11}}, 3), 0.5f, gradient, [&](const Matrix& m) {
      told.push_back(m.name);
      device->copy(part(m, gradient), part(m, then));
    });
    const Tensor after = down(*device, gradient);
    ASSERT_EQ(told.size(), layout.matrices.size());
    for (std::size_t i = 0; i < told.size(); ++i) {
      const Matrix& m = layout.matrices[told.size() - 1 - i];
      EXPECT_EQ(told[i], m.name);
      EXPECT_TRUE(std::ranges::equal(part(m, after).span<float>(), part(m, then).span<float>())) << m.name;
      EXPECT_LT(*std::ranges::max_element(part(m, then).span<float>()), 1e9f) << m.name << " was written";
    }
  }
}

/// The same bits for any number of threads, with and without keeping activations.
TEST_F(Backwards, ThreadsAndMemoryChangeNothing) {
  const ModelConfig c = small_config("SL", 9);
  const TrainBatch batch = make_batch(c, documents, 6);
  const ParamLayout layout(c);
  const Tensor vector = host_tensor(DType::f32, {layout.size});
  initialize(c, layout, Init::copying, 1, vector);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    std::vector<std::vector<float>> gradients;
    for (const auto& [threads, recompute] : {std::pair{1, false}, {3, false}, {2, true}}) {
      const auto device = test_device(threads);
      const Tensor gradient = host_tensor(DType::f32, {layout.size});
      gradient_of(c, layout, *device, dtype, {.rows = 3, .recompute = recompute}, vector, batch, 1, gradient);
      gradients.emplace_back();
      for (const Matrix& m : layout.matrices) {
        const std::span<const float> part = layout.of(m, gradient).span<float>();
        gradients.back().insert(gradients.back().end(), part.begin(), part.end());
      }
    }
    EXPECT_EQ(gradients[0], gradients[1]);
    EXPECT_EQ(gradients[0], gradients[2]);
  }
}

}  // namespace
}  // namespace kvmesh
