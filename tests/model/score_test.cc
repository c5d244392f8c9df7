// Log-likelihoods against the float64 twin, and that rows do not see each other.
#include "model/score.h"

#include "tests/runtime/test_device.h"
#include "twin.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace kvmesh {
namespace {

ModelConfig tiny() {
  ModelConfig c;
  c.seqlen = 24;
  c.vocab_size = 61;
  c.d_emb = 32;
  c.num_layers = 2;
  c.q_heads = 4;
  c.kv_heads = 2;
  c.window_pattern = "SL";
  c.local_window_size = 5;
  return c;
}

struct Case {
  std::vector<std::int32_t> prompt, completion;
};

struct Model {
  ModelConfig config = tiny();
  test::Weights weights;
  std::unique_ptr<Device> device = test_device();
  Gpt gpt;
  explicit Model(DType dtype) : weights(test::random_weights(config, dtype, 7)), gpt(config, dtype, test::pack(config, dtype, weights, *device), *device) {}

  Score twin(const Case& c) const {
    std::vector<std::int32_t> all = c.prompt;
    all.insert(all.end(), c.completion.begin(), c.completion.end());
    const auto logits = test::twin_logits(config, weights, all);
    Score score;
    for (std::size_t t = c.prompt.size(); t < all.size(); ++t) {
      const std::vector<double>& row = logits[t - 1];
      score.log_likelihood += test::log_softmax(row)[static_cast<std::size_t>(all[t])];
      score.greedy = score.greedy && std::max_element(row.begin(), row.end()) - row.begin() == all[t];
    }
    return score;
  }

  // The twin's greedy completion.
  std::vector<std::int32_t> greedy(std::vector<std::int32_t> tokens, std::size_t count) const {
    std::vector<std::int32_t> out;
    while (out.size() < count) {
      const auto row = test::twin_logits(config, weights, tokens).back();
      out.push_back(static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin()));
      tokens.push_back(out.back());
    }
    return out;
  }
};

std::vector<Score> run(const Model& m, const std::vector<Case>& cases) {
  std::vector<ScoreRow> rows;
  for (const Case& c : cases) rows.push_back({c.prompt, c.completion});
  return Scorer(m.gpt).run(rows);
}

// Short and long rows, the shortest and longest that there can be, more of them than a pass holds.
std::vector<Case> cases(const Model& m) {
  std::mt19937 random(3);
  const auto tokens = [&](std::size_t n) {
    std::vector<std::int32_t> ids(n);
    for (std::int32_t& t : ids) t = static_cast<std::int32_t>(random() % 61);
    return ids;
  };
  std::vector<Case> all;
  for (const auto& [p, c] : std::vector<std::pair<std::size_t, std::size_t>>{{1, 1}, {1, 23}, {23, 1}, {12, 12}, {5, 3}, {2, 9}}) all.push_back({tokens(p), tokens(c)});
  for (std::size_t i = 0; i < 25; ++i) all.push_back({tokens(1 + i % 11), tokens(1 + i % 13)});
  for (const std::size_t n : {1, 7, 19}) {
    all.push_back({tokens(5), {}});
    all.back().completion = m.greedy(all.back().prompt, n);
  }
  all.push_back(all.back());
  all.back().completion[18] = (all.back().completion[18] + 1) % 61;  // greedy but for its last token
  all.push_back({{7, 8}, {}});  // greedy but for its first
  all.back().completion = {(m.greedy({7, 8}, 1)[0] + 1) % 61};
  const std::vector<std::int32_t> rest = m.greedy({7, 8, all.back().completion[0]}, 4);
  all.back().completion.insert(all.back().completion.end(), rest.begin(), rest.end());
  return all;
}

TEST(Score, float32_agrees_with_the_twin) {
  const Model m(DType::f32);
  const std::vector<Case> rows = cases(m);
  const std::vector<Score> scores = run(m, rows);
  ASSERT_EQ(scores.size(), rows.size());
  int greedy = 0;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Score truth = m.twin(rows[i]);
    EXPECT_NEAR(scores[i].log_likelihood, truth.log_likelihood, 1e-4 * static_cast<double>(rows[i].completion.size())) << "row " << i;
    EXPECT_EQ(scores[i].greedy, truth.greedy) << "row " << i;
    greedy += truth.greedy;
  }
  EXPECT_GE(greedy, 3);
  EXPECT_FALSE(scores[scores.size() - 2].greedy);
  EXPECT_FALSE(scores.back().greedy);
}

TEST(Score, bfloat16_is_near_the_twin) {
  const Model m(DType::bf16);
  const std::vector<Case> rows = cases(m);
  const std::vector<Score> scores = run(m, rows);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_NEAR(scores[i].log_likelihood, m.twin(rows[i]).log_likelihood, 0.1 * static_cast<double>(rows[i].completion.size())) << "row " << i;
  }
}

TEST(Score, ARowsScoreIsTheSameBitsAlone) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Model m(dtype);
    const std::vector<Case> rows = cases(m);
    const std::vector<Score> together = run(m, rows);
    for (std::size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(run(m, {rows[i]})[0].log_likelihood, together[i].log_likelihood) << "row " << i;
  }
}

TEST(Score, NoRowsNoScores) { EXPECT_TRUE(run(Model(DType::f32), {}).empty()); }

}  // namespace
}  // namespace kvmesh
