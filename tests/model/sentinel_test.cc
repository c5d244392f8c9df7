// One bit of the weights that flips in memory is found when its part comes round again, wherever it is.
#include "model/sentinel.h"

#include "tests/model/twin.h"

#include <gtest/gtest.h>

#include <fmt/format.h>

#include <optional>
#include <set>

namespace kvmesh {
namespace {

ModelConfig tiny() {
  ModelConfig c;
  c.seqlen = 8;
  c.vocab_size = 61;
  c.d_emb = 32;
  c.num_layers = 2;
  c.q_heads = 4;
  c.kv_heads = 2;
  return c;
}

/// The part, from 0, at which the watch finds a change within one round.
std::optional<std::int64_t> find_change(WeightWatch& watch) {
  std::optional<std::int64_t> found;
  for (std::int64_t part = 0; part < WeightWatch::parts && !found; ++part) {
    try {
      watch.next();
    } catch (const Error& e) {
      EXPECT_EQ(e.fault(), Fault::rank);
      EXPECT_EQ(std::string(e.what()), fmt::format("the weights in memory have changed since they were loaded (part {} of 256)", part + 1));
      found = part;
    }
  }
  return found;
}

class Sentinel : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, Sentinel, ::testing::Values(DType::f32, DType::bf16), [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(Sentinel, FindsABitThatFlips) {
  const ModelConfig config = tiny();
  const auto device = make_device("cpu", {1});
  const test::Weights weights = test::random_weights(config, GetParam(), 3);
  const Gpt gpt(config, GetParam(), test::pack(config, GetParam(), weights, *device), *device);
  const GptWeights& w = gpt.weights();
  std::vector<Tensor> tensors = {w.embed, w.lm_head.data};
  for (const GptWeights::Block& b : w.blocks) tensors.insert(tensors.end(), {b.qkv.data, b.wo.data, b.fc1.data, b.fc2.data});
  ASSERT_EQ(tensors.size(), 10u);
  std::set<std::int64_t> parts;
  for (const Tensor& t : tensors) {
    for (const std::size_t at : {std::size_t{0}, t.bytes() / 2, t.bytes() - 1}) {
      WeightWatch watch(gpt);
      EXPECT_EQ(find_change(watch), std::nullopt);  // the first round learns
      EXPECT_EQ(find_change(watch), std::nullopt);
      auto& byte = static_cast<std::byte*>(t.raw())[at];
      byte ^= std::byte{16};
      const auto part = find_change(watch);
      byte ^= std::byte{16};
      ASSERT_TRUE(part.has_value()) << "byte " << at << " of " << to_string(t.shape());
      parts.insert(*part);
    }
  }
  EXPECT_EQ(*parts.begin(), 0);
  EXPECT_EQ(*parts.rbegin(), WeightWatch::parts - 1);
  EXPECT_GT(parts.size(), 20u);
}

// Equal models hash alike, part by part, and what two ranks compare differs in the part that differs.
TEST(Sentinel, EqualWeightsHashAlike) {
  const ModelConfig config = tiny();
  const auto device = make_device("cpu", {1});
  const test::Weights weights = test::random_weights(config, DType::f32, 3);
  const Gpt a(config, DType::f32, test::pack(config, DType::f32, weights, *device), *device), b(config, DType::f32, test::pack(config, DType::f32, weights, *device), *device);
  static_cast<std::byte*>(b.weights().blocks[1].fc1.data.raw())[5] ^= std::byte{1};
  WeightWatch watch_a(a), watch_b(b);
  int different = 0;
  for (std::int64_t i = 0; i < WeightWatch::parts; ++i) different += watch_a.next() != watch_b.next();
  EXPECT_EQ(different, 1);
}

}  // namespace
}  // namespace kvmesh
