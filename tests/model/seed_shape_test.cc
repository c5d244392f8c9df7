// The seed's shape in bfloat16, with a prompt near the end of its context: a row alone, in whole chunks and on one thread, has the bits
// that it has in company, cut elsewhere, wrapped around the ring, on other threads. Small shapes cannot show a sum whose order
// changes with the number of rows only once K or the rows are many.
#include "model/gpt.h"

#include "tests/runtime/test_device.h"
#include "twin.h"

#include <gtest/gtest.h>

#include <cstring>

namespace kvmesh {
namespace {

ModelConfig seed_shape() {
  ModelConfig c;
  c.seqlen = 2048;
  c.vocab_size = 50304;
  c.d_emb = 768;
  c.num_layers = 12;
  c.q_heads = 8;
  c.kv_heads = 4;
  return c;
}

// Uniform numbers of twin.h's sizes: normal ones would take longer than the test.
test::Weights uniform_weights(const ModelConfig& config) {
  test::Weights weights;
  std::uint32_t state = 1;
  for (const ParamSpec& spec : param_specs(config)) {
    const double fan_in = spec.name == "embed.weight" ? 1 : spec.name.ends_with("wo") ? static_cast<double>(config.d_emb) : static_cast<double>(spec.shape[0]);
    const auto width = static_cast<float>(std::sqrt(12 / fan_in));
    std::vector<float>& w = weights[spec.name];
    w.resize(static_cast<std::size_t>(spec.shape.numel()));
    for (float& x : w) x = (static_cast<float>((state = state * 1664525u + 1013904223u) >> 8) * 0x1p-24f - 0.5f) * width;
  }
  return weights;
}

using Tokens = std::vector<std::int32_t>;

Tokens random_tokens(std::size_t n, unsigned seed) {
  std::mt19937 random(seed);
  Tokens tokens(n);
  for (std::int32_t& t : tokens) t = static_cast<std::int32_t>(random() % 50304);
  return tokens;
}

/// Rows that are prefilled together and then fed their last `steps` tokens one by one, all ending at one cursor. Returns, for each row, the
/// logits after its prompt and after each step: [rows][steps + 1][V].
std::vector<std::vector<float>> run(const Gpt& gpt, const std::vector<Tokens>& rows, std::size_t steps, std::int64_t end, std::int64_t chunk) {
  const auto count = static_cast<std::int64_t>(rows.size()), vocab = gpt.config().vocab_size;
  const KvCache cache(gpt.device(), gpt.config(), gpt.dtype(), count, gpt.config().seqlen);
  Gpt::Workspace workspace(gpt, chunk);
  const Tensor logits = gpt.device().empty(DType::f32, {count, vocab});
  std::vector<std::vector<float>> out(rows.size());
  for (std::size_t step = 0; step <= steps; ++step) {
    Tokens packed, wanted;
    std::vector<Segment> segments;
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto prompt = static_cast<std::int64_t>(rows[r].size() - steps), done = step == 0 ? 0 : prompt + static_cast<std::int64_t>(step) - 1,
                 n = step == 0 ? prompt : 1, start = end - prompt;
      segments.push_back({start, start + done, static_cast<std::int32_t>(r), static_cast<std::int32_t>(n), static_cast<std::int32_t>(packed.size())});
      packed.insert(packed.end(), rows[r].begin() + done, rows[r].begin() + done + n);
      wanted.push_back(static_cast<std::int32_t>(packed.size()) - 1);
    }
    gpt.forward(packed, segments, wanted, cache, workspace, logits);
    const Tensor there = down(gpt.device(), logits);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const float* row = there.data<float>() + static_cast<std::int64_t>(r) * vocab;
      out[r].insert(out[r].end(), row, row + vocab);
    }
  }
  return out;
}

bool same(const float* a, const float* b, std::size_t n) { return std::memcmp(a, b, n * sizeof(float)) == 0; }

TEST(SeedShape, a_long_row_has_the_same_bits_alone_and_in_company) {
  const ModelConfig config = seed_shape();
  const auto one = test_device(1), three = test_device(3);
  const GptWeights weights = test::pack(config, DType::bf16, uniform_weights(config), *three);
  const Gpt alone(config, DType::bf16, weights, *one), company(config, DType::bf16, weights, *three);
  constexpr std::size_t steps = 3;
  const std::vector<Tokens> rows = {random_tokens(37, 1), random_tokens(2047, 2), random_tokens(4, 3), random_tokens(451, 4)};
  const auto together = run(company, rows, steps, 3 * 2048 + 1021, 300);
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const auto single = run(alone, {rows[r]}, steps, 2048, Gpt::chunk_tokens);
    for (std::size_t step = 0; step <= steps; ++step) {
      EXPECT_TRUE(same(single[0].data() + step * vocab, together[r].data() + step * vocab, vocab)) << "row of " << rows[r].size() << " tokens, step " << step;
    }
  }
  // One row a product for all tokens: rounding to bfloat16 hides most differences in the last bits of a sum, and a few dozen tokens find one.
  const auto by_token = run(alone, {rows[0]}, rows[0].size() - 1, 2048, Gpt::chunk_tokens);
  EXPECT_TRUE(same(by_token[0].data() + (rows[0].size() - 1 - steps) * vocab, together[0].data(), (steps + 1) * vocab)) << "token by token";
}

}  // namespace
}  // namespace kvmesh
