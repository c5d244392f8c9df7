// What is told of a quantized model's drift, against the float64 twin's log-probabilities with and without the rounding.
#include "model/drift.h"

#include "scratch.h"
#include "twin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

namespace kvmesh {
namespace {

ModelConfig config_of() {
  ModelConfig c;
  c.seqlen = 160;  // more than a piece, twice
  c.vocab_size = 61;
  c.d_emb = 32;
  c.num_layers = 2;
  c.q_heads = 4;
  c.kv_heads = 2;
  return c;
}

const ModelConfig config = config_of();
const test::Weights weights = test::random_weights(config, DType::f32, 7);
const std::unique_ptr<Device> device = make_device("cpu", {.threads = 2});
const Gpt whole(config, DType::f32, test::pack(config, DType::f32, weights, *device), *device);
const Gpt integers(config, DType::f32, test::pack(config, DType::f32, weights, *device, Quantize::int8), *device);

TEST(Drift, IsWhatTheTwinSays) {
  auto sequences = random_sequences(3, 2, config.vocab_size, 5);
  sequences[1] = random_sequences(1, 65, config.vocab_size, 6)[0];
  sequences[2] = random_sequences(1, config.seqlen, config.vocab_size, 7)[0];
  Drift want;
  for (const auto& sequence : sequences) {
    const auto a = test::twin_logits(config, weights, sequence), b = test::twin_logits(config, test::quantized(config, weights), sequence);
    for (std::size_t t = 0; t + 1 < sequence.size(); ++t, ++want.tokens) {
      const std::vector<double> p = test::log_softmax(a[t]), q = test::log_softmax(b[t]);
      const auto next = static_cast<std::size_t>(sequence[t + 1]);
      want.mean += std::abs(p[next] - q[next]);
      want.most = std::max(want.most, std::abs(p[next] - q[next]));
      for (std::size_t v = 0; v < p.size(); ++v) want.divergence += std::exp(p[v]) * (p[v] - q[v]);
      want.same_top += std::max_element(p.begin(), p.end()) - p.begin() == std::max_element(q.begin(), q.end()) - q.begin();
    }
  }
  const Drift drift = drift_between(whole, integers, sequences);
  const auto tokens = static_cast<double>(want.tokens);
  EXPECT_EQ(drift.tokens, 1 + 64 + config.seqlen - 1);
  EXPECT_EQ(drift.tokens, want.tokens);
  EXPECT_NEAR(drift.mean, want.mean / tokens, 2e-5);
  EXPECT_NEAR(drift.most, want.most, 1e-4);
  EXPECT_NEAR(drift.divergence, want.divergence / tokens, 1e-5);
  EXPECT_NEAR(drift.same_top, want.same_top / tokens, 1e-9);
  EXPECT_GT(drift.mean, 1e-3);
  EXPECT_GT(drift.divergence, 1e-5);
}

TEST(Drift, OfAModelFromItselfIsNone) {
  const Drift drift = drift_between(whole, whole, random_sequences(2, 70, config.vocab_size, 1));
  EXPECT_EQ(drift.tokens, 2 * 69);
  EXPECT_EQ(drift.mean, 0);
  EXPECT_EQ(drift.most, 0);
  EXPECT_EQ(drift.divergence, 0);
  EXPECT_EQ(drift.same_top, 1);
}

TEST(Drift, SequencesThatPredictNothingOrDoNotFit) {
  for (const std::size_t tokens : {1, 161}) {
    EXPECT_NE(test::error_of([&] { drift_between(whole, whole, std::vector(1, std::vector<std::int32_t>(tokens, 3))); }), "") << tokens;
  }
}

TEST(Drift, RandomSequencesAreTheSameForTheSameSeedAndCoverTheVocabulary) {
  const auto a = random_sequences(4, 500, 7, 1);
  EXPECT_EQ(a, random_sequences(4, 500, 7, 1));
  EXPECT_NE(a, random_sequences(4, 500, 7, 2));
  EXPECT_NE(a[0], a[1]);
  for (const auto& sequence : a) {
    for (std::int32_t id = 0; id < 7; ++id) EXPECT_GT(std::count(sequence.begin(), sequence.end(), id), 30) << id;
    EXPECT_EQ(*std::max_element(sequence.begin(), sequence.end()), 6);
    EXPECT_EQ(*std::min_element(sequence.begin(), sequence.end()), 0);
  }
}

}  // namespace
}  // namespace kvmesh
