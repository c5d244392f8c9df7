// The forward pass against the float64 twin, and its bits against themselves under every way to cut, place and pad the same row.
#include "model/gpt.h"

#include "tests/runtime/test_device.h"
#include "twin.h"

#include <gtest/gtest.h>

#include <cstring>
#include <numeric>

namespace kvmesh {
namespace {

ModelConfig tiny(std::int64_t q_heads = 4, std::int64_t kv_heads = 2, std::string pattern = "L") {
  ModelConfig c;
  c.seqlen = 24;
  c.vocab_size = 61;
  c.d_emb = 32;
  c.num_layers = 3;
  c.q_heads = q_heads;
  c.kv_heads = kv_heads;
  c.window_pattern = std::move(pattern);
  c.local_window_size = 5;
  return c;
}

std::vector<ModelConfig> shapes() {
  std::vector<ModelConfig> all = {tiny(), tiny(4, 4), tiny(4, 1), tiny(2, 1, "S"), tiny(4, 2, "SSL"), tiny(4, 2, "SL"), tiny(16, 8)};
  all[4].nope_global_attn = false;
  all[2].logit_soft_cap = 0;
  all[1].local_window_size = 1;
  ModelConfig odd = tiny(3, 1, "SL");  // head_dim 10
  odd.d_emb = 30;
  all.push_back(odd);
  if (emulated()) return {all[0], all[4], odd};
  return all;
}

std::vector<std::int32_t> random_tokens(std::size_t n, std::int64_t vocab, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> tokens(n);
  for (std::int32_t& t : tokens) t = static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab));
  return tokens;
}

// A model with its twin's weights, which are what the integers stand for where there are any.
struct Model {
  ModelConfig config;
  test::Weights weights;
  std::unique_ptr<Device> device;
  Gpt gpt;
  Model(const ModelConfig& c, DType dtype, int threads = 1, Quantize quantize = Quantize::none)
      : config(c), weights(test::random_weights(c, dtype, 7)), device(test_device(threads)), gpt(c, dtype, test::pack(c, dtype, weights, *device, quantize), *device) {
    if (quantize == Quantize::int8) weights = test::quantized(c, weights);
  }
};

// All logits [tokens, V] of one row whose tokens enter the cache in runs of the given lengths, the first token at `start`.
std::vector<float> logits_of(const Model& m, const std::vector<std::int32_t>& tokens, const std::vector<std::size_t>& runs, std::int64_t start, std::int32_t place = 0,
                             std::int64_t workspace_tokens = Gpt::chunk_tokens) {
  const KvCache cache(*m.device, m.config, m.gpt.dtype(), place + 1, m.config.seqlen);
  Gpt::Workspace workspace(m.gpt, workspace_tokens);
  std::vector<float> all;
  std::size_t at = 0;
  for (const std::size_t count : runs) {
    const std::span<const std::int32_t> run = std::span(tokens).subspan(at, count);
    const Segment segment{start, start + static_cast<std::int64_t>(at), place, static_cast<std::int32_t>(count), 0};
    std::vector<std::int32_t> wanted(count);
    std::iota(wanted.begin(), wanted.end(), 0);
    const Tensor logits = m.device->empty(DType::f32, {static_cast<std::int64_t>(count), m.config.vocab_size});
    m.gpt.forward(run, std::span(&segment, 1), wanted, cache, workspace, logits);
    const Tensor there = down(*m.device, logits);
    const auto values = there.span<float>();
    all.insert(all.end(), values.begin(), values.end());
    at += count;
  }
  return all;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) { return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0; }

double worst_log_probability_error(const Model& m, const std::vector<std::int32_t>& tokens, const std::vector<float>& logits) {
  const auto twin = test::twin_logits(m.config, m.weights, tokens);
  double worst = 0;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    const auto vocab = static_cast<std::size_t>(m.config.vocab_size);
    const std::vector<double> mine = test::log_softmax({logits.begin() + static_cast<std::ptrdiff_t>(t * vocab), logits.begin() + static_cast<std::ptrdiff_t>((t + 1) * vocab)});
    const std::vector<double> truth = test::log_softmax(twin[t]);
    for (std::size_t v = 0; v < vocab; ++v) worst = std::max(worst, std::abs(mine[v] - truth[v]));
  }
  return worst;
}

TEST(Gpt, float32_agrees_with_the_twin) {
  for (const ModelConfig& config : shapes()) {
    const Model m(config, DType::f32);
    const auto tokens = random_tokens(static_cast<std::size_t>(config.seqlen), config.vocab_size, 3);
    EXPECT_LT(worst_log_probability_error(m, tokens, logits_of(m, tokens, {tokens.size()}, config.seqlen)), 1e-4) << to_json(config);
  }
}

// bfloat16 keeps 8 bits a number: with three layers and logits of order 1 that is a few hundredths.
TEST(Gpt, bfloat16_is_near_the_twin) {
  for (const ModelConfig& config : shapes()) {
    const Model m(config, DType::bf16);
    const auto tokens = random_tokens(static_cast<std::size_t>(config.seqlen), config.vocab_size, 3);
    EXPECT_LT(worst_log_probability_error(m, tokens, logits_of(m, tokens, {tokens.size()}, config.seqlen)), 0.25) << to_json(config);
  }
}

TEST(Gpt, integers_agree_with_the_twin_of_what_they_stand_for) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const ModelConfig& config : {tiny(), tiny(4, 2, "SL")}) {
      const Model m(config, dtype, 2, Quantize::int8), whole(config, dtype, 2);
      const auto tokens = random_tokens(static_cast<std::size_t>(config.seqlen), config.vocab_size, 3);
      const auto logits = logits_of(m, tokens, {tokens.size()}, config.seqlen);
      EXPECT_LT(worst_log_probability_error(m, tokens, logits), dtype == DType::f32 ? 1e-4 : 0.25) << to_json(config);
      EXPECT_TRUE(dtype == DType::bf16 || worst_log_probability_error(whole, tokens, logits) > 1e-3) << "they are not the same model";
      for (const std::size_t cut : {1, 7, 20}) EXPECT_TRUE(same_bits(logits, logits_of(m, tokens, {cut, tokens.size() - cut}, 3))) << "cut at " << cut;
      EXPECT_TRUE(same_bits(logits, logits_of(m, tokens, std::vector<std::size_t>(tokens.size(), 1), 5))) << "token by token";
    }
  }
}

class GptBits : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, GptBits, testing::Values(DType::f32, DType::bf16), [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(GptBits, cached_equals_uncached_for_every_cut_start_place_and_thread_count) {
  for (const ModelConfig& config : shapes()) {
    const Model m(config, GetParam()), threaded(config, GetParam(), 3);
    const auto size = static_cast<std::size_t>(config.seqlen);
    for (const std::size_t n : {std::size_t{1}, std::size_t{2}, size - 1, size}) {
      const auto tokens = random_tokens(n, config.vocab_size, 5);
      const auto whole = logits_of(m, tokens, {n}, config.seqlen);
      EXPECT_TRUE(same_bits(whole, logits_of(m, tokens, std::vector<std::size_t>(n, 1), config.seqlen))) << "token by token";
      EXPECT_TRUE(same_bits(whole, logits_of(threaded, tokens, {n}, config.seqlen, 2))) << "three threads, another place";
      EXPECT_TRUE(same_bits(whole, logits_of(m, tokens, {n}, config.seqlen, 0, 3))) << "chunks of 3";
      const std::size_t step = emulated() ? 7 : 1;
      for (std::int64_t start = 0; start <= config.seqlen + 1; start += static_cast<std::int64_t>(step)) {  // every left padding, every way to wrap
        ASSERT_TRUE(same_bits(whole, logits_of(m, tokens, {n}, start))) << "start " << start << " of " << n;
      }
      for (std::size_t cut = 1; cut < n; cut += step) ASSERT_TRUE(same_bits(whole, logits_of(m, tokens, {cut, n - cut}, config.seqlen + 3))) << "cut at " << cut;
    }
  }
}

TEST_P(GptBits, company_changes_nothing) {
  const Model m(tiny(4, 2, "SL"), GetParam());
  const std::vector<std::size_t> lengths = {5, 1, 17, 24, 2, 9, 24, 3};
  std::vector<std::vector<std::int32_t>> rows;
  std::vector<std::int32_t> packed, wanted;
  std::vector<Segment> segments;
  const std::int64_t end = 2 * m.config.seqlen + 7;  // right-aligned: all end at one cursor
  for (std::size_t r = 0; r < lengths.size(); ++r) {
    rows.push_back(random_tokens(lengths[r], m.config.vocab_size, static_cast<unsigned>(r)));
    const auto n = static_cast<std::int64_t>(lengths[r]);
    segments.push_back({end - n, end - n, static_cast<std::int32_t>(r), static_cast<std::int32_t>(n), static_cast<std::int32_t>(packed.size())});
    packed.insert(packed.end(), rows[r].begin(), rows[r].end());
    wanted.push_back(static_cast<std::int32_t>(packed.size()) - 1);
  }
  for (const std::int64_t chunk : {std::int64_t{512}, std::int64_t{16}, std::int64_t{5}}) {
    const KvCache cache(*m.device, m.config, m.gpt.dtype(), 8, m.config.seqlen);
    Gpt::Workspace workspace(m.gpt, chunk);
    const Tensor logits = m.device->empty(DType::f32, {8, m.config.vocab_size});
    m.gpt.forward(packed, segments, wanted, cache, workspace, logits);
    const Tensor there = down(*m.device, logits);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      const auto alone = logits_of(m, rows[r], {rows[r].size()}, 0);
      const auto vocab = static_cast<std::size_t>(m.config.vocab_size);
      EXPECT_EQ(std::memcmp(alone.data() + (rows[r].size() - 1) * vocab, there.data<float>() + r * vocab, vocab * sizeof(float)), 0) << "row " << r << ", chunks of " << chunk;
    }
  }
}

// Rows that decode together, step by step into the same memory: what a device may record at one step and repeat at the next.
TEST_P(GptBits, steps_of_decoding_rows) {
  const Model m(tiny(4, 2, "SL"), GetParam());
  const std::int64_t end = 2 * m.config.seqlen + 7;
  const std::vector<std::int64_t> prompts = {7, 1, 3};
  const KvCache cache(*m.device, m.config, m.gpt.dtype(), 3, m.config.seqlen);
  Gpt::Workspace workspace(m.gpt, 64);
  const Tensor logits = m.device->empty(DType::f32, {3, m.config.vocab_size});
  std::vector<std::vector<std::int32_t>> rows;
  std::vector<std::vector<float>> whole;
  for (std::size_t r = 0; r < 3; ++r) {
    rows.push_back(random_tokens(static_cast<std::size_t>(prompts[r]) + 9, m.config.vocab_size, static_cast<unsigned>(r)));
    whole.push_back(logits_of(m, rows[r], {rows[r].size()}, 0));
    const Segment prompt{end - prompts[r], end - prompts[r], static_cast<std::int32_t>(r), static_cast<std::int32_t>(prompts[r]), 0};
    m.gpt.forward(std::span(rows[r]).first(static_cast<std::size_t>(prompts[r])), std::span(&prompt, 1), {}, cache, workspace, {});
  }
  for (std::int64_t step = 0; step < 9; ++step) {
    std::vector<std::size_t> order = {0, 1, 2};  // the third row leaves after the sixth step
    if (step >= 6) order = {1, 0};
    std::vector<std::int32_t> tokens, wanted;
    std::vector<Segment> segments;
    for (const std::size_t r : order) {
      wanted.push_back(static_cast<std::int32_t>(tokens.size()));
      segments.push_back({end - prompts[r], end + step, static_cast<std::int32_t>(r), 1, wanted.back()});
      tokens.push_back(rows[r][static_cast<std::size_t>(prompts[r] + step)]);
    }
    m.gpt.forward(tokens, segments, wanted, cache, workspace, logits.slice(0, std::ssize(order)));
    const Tensor there = down(*m.device, logits);
    const auto vocab = static_cast<std::size_t>(m.config.vocab_size);
    for (std::size_t i = 0; i < order.size(); ++i) {
      const float* alone = whole[order[i]].data() + static_cast<std::size_t>(prompts[order[i]] + step) * vocab;
      ASSERT_EQ(std::memcmp(there.data<float>() + i * vocab, alone, vocab * sizeof(float)), 0) << "step " << step << ", row " << order[i];
    }
  }
}

// A fork of a row (copied prompt but for its last token) goes on with the row's bits, wherever it is placed in the ring.
TEST_P(GptBits, a_copied_row_goes_on_as_the_original) {
  const Model m(tiny(), GetParam());
  const auto tokens = random_tokens(20, m.config.vocab_size, 11);
  const auto whole = logits_of(m, tokens, {tokens.size()}, 0);
  const KvCache cache(*m.device, m.config, m.gpt.dtype(), 2, m.config.seqlen);
  Gpt::Workspace workspace(m.gpt, 64);
  const Tensor logits = m.device->empty(DType::f32, {1, m.config.vocab_size});
  const std::int32_t last = 19, only = 0;
  const Segment prompt{30, 30, 0, 20, 0}, fork{41, 60, 1, 1, 0};
  m.gpt.forward(tokens, std::span(&prompt, 1), std::span(&last, 1), cache, workspace, logits);
  cache.copy_row(*m.device, 0, 30, 1, 41, 19);
  m.gpt.forward(std::span(tokens).last(1), std::span(&fork, 1), std::span(&only, 1), cache, workspace, logits);
  const auto vocab = static_cast<std::size_t>(m.config.vocab_size);
  EXPECT_EQ(std::memcmp(down(*m.device, logits).raw(), whole.data() + 19 * vocab, vocab * sizeof(float)), 0);
}

}  // namespace
}  // namespace kvmesh
