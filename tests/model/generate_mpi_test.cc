// Generating on 1 to 4 ranks. What each row must say is worked out by every rank alone (generate_oracle.h). Then every way to run the rows must give the bits
// of one row alone.
#include "tests/comm/mpi_main.h"

#include "tests/model/generate_oracle.h"

#include <gmock/gmock-matchers.h>

#include <set>

namespace kvmesh {
namespace {

using namespace test;
using ::testing::HasSubstr;
using testing::group;

class Generate : public ::testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(Dtypes, Generate, ::testing::Values(DType::f32, DType::bf16), [](const auto& p) { return std::string(name_of(p.param)); });

TEST_P(Generate, ARowAloneSaysWhatTheOracleSays) {
  if (emulated() && GetParam() == DType::f32) GTEST_SKIP() << "takes long; as with bfloat16";
  const Model m(GetParam());
  const Tokenizer tokenizer = make_tokenizer();
  const std::vector<Row> rows = make_rows(m);
  GenerateOptions options;
  options.seed = 9;
  options.logprobs = 3;
  std::set<Finish> seen;
  for (const auto& [key, c] : alone(m, &tokenizer, options, rows)) {
    const Row& row = rows[static_cast<std::size_t>(key.first)];
    const Expected e = oracle(m, row, 9, false);
    ASSERT_GT(e.smallest_gap, 1e-4) << "row " << key.first << ": choose other weights, float32 cannot decide this";
    EXPECT_EQ(c.tokens, e.tokens) << "row " << key.first;
    EXPECT_EQ(c.bytes, e.bytes) << "row " << key.first;
    EXPECT_EQ(c.finish, e.finish) << "row " << key.first;
    seen.insert(c.finish);
    ASSERT_EQ(c.logprobs.size(), e.tokens.size());
    ASSERT_EQ(c.top_ids.size(), 3 * e.tokens.size());
    for (std::size_t t = 0; t < e.tokens.size(); ++t) {  // before temperature and filters
      const std::vector<double> lp = log_softmax({e.logits[t].begin(), e.logits[t].end()});
      EXPECT_NEAR(c.logprobs[t], lp[static_cast<std::size_t>(e.tokens[t])], 1e-5);
      std::vector<std::int32_t> ids(lp.size());
      std::iota(ids.begin(), ids.end(), 0);
      std::stable_sort(ids.begin(), ids.end(), [&](auto a, auto b) { return lp[static_cast<std::size_t>(a)] > lp[static_cast<std::size_t>(b)]; });
      for (std::size_t j = 0; j < 3; ++j) {
        EXPECT_EQ(c.top_ids[3 * t + j], ids[j]);
        EXPECT_NEAR(c.top_logprobs[3 * t + j], lp[static_cast<std::size_t>(ids[j])], 1e-5);
      }
    }
  }
  EXPECT_EQ(seen, (std::set<Finish>{Finish::stop, Finish::length, Finish::context}));
}

TEST(GenerateGreedy, Float32TokensAreTheTwinsArgmax) {
  const Model m(DType::f32, 1, 8);
  std::vector<Row> rows;
  for (const std::size_t prompt : {1, 4, 9, 17, 23}) rows.push_back(make_row(std::ssize(rows), prompt, 40));
  GenerateOptions options;
  options.logprobs = 0;
  options.batch_size = 3;
  for (const auto& [key, c] : run(m, nullptr, group->world(), options, rows)) {
    Tokens all = *rows[static_cast<std::size_t>(key.first)].prompt;
    for (std::size_t t = 0; t < c.tokens.size(); ++t) {
      std::vector<double> logits = twin_logits(m.config, m.weights, all).back();
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      EXPECT_NEAR(c.logprobs[t], log_softmax(logits)[static_cast<std::size_t>(best)], 1e-4);
      const double top = std::exchange(logits[static_cast<std::size_t>(best)], -1e30);
      ASSERT_GT(top - *std::max_element(logits.begin(), logits.end()), 1e-3) << "choose other weights, float32 cannot decide this";
      ASSERT_EQ(c.tokens[t], best) << "row " << key.first << ", token " << t;
      all.push_back(c.tokens[t]);
    }
    EXPECT_EQ(std::ssize(all), m.config.seqlen);
    EXPECT_EQ(c.finish, Finish::context);
    EXPECT_TRUE(c.bytes.empty()) << "there is no tokenizer";
  }
}

TEST_P(Generate, EveryWayToRunGivesTheBitsOfARowAlone) {
  if (emulated() && GetParam() == DType::f32) GTEST_SKIP() << "takes long; as with bfloat16";
  const Model m(GetParam()), threaded(GetParam(), 3);
  const Tokenizer tokenizer = make_tokenizer();
  std::vector<Row> rows = make_rows(m);
  GenerateOptions options;
  options.seed = 9;
  options.logprobs = 2;
  const Results expected = alone(m, &tokenizer, options, rows);
  std::mt19937 random(1);
  int variant = 0;
  for (const std::int64_t batch : emulated() ? std::vector<std::int64_t>{3} : std::vector<std::int64_t>{1, 2, 3, 4, 7, 32}) {
    for (const Sync sync : {Sync::tokens, Sync::logits}) {
      options.batch_size = batch;
      options.sync = sync;
      options.pad = variant % 3 == 0 ? Pad::longest : Pad::power_of_two;
      options.static_batches = variant % 4 >= 2;
      options.sync_every = std::vector<std::int64_t>{1, 4, 3, 2, 50}[static_cast<std::size_t>(variant) % 5];
      options.shards = variant % 3 == 0 && batch >= group->size() ? Shards::fixed : Shards::shared;
      options.prefill_chunk = std::vector<std::int64_t>{512, 1, 5, 16}[static_cast<std::size_t>(variant) % 4 ^ 1];  // 1 and 512 with refill
      const bool threads = variant % 5 == 1;
      ++variant;
      expect_same(expected, run(threads ? threaded : m, &tokenizer, group->world(), options, rows),
                  fmt::format("batch {}, sync {}, pad {}, static {}, threads {}, prefill {}", batch, static_cast<int>(sync), static_cast<int>(options.pad), options.static_batches, threads,
                              options.prefill_chunk));
      std::shuffle(rows.begin(), rows.end(), random);
    }
  }
}

TEST_P(Generate, SamplesAreRowsOfTheirOwnKeys) {
  if (emulated() && GetParam() == DType::f32) GTEST_SKIP() << "takes long; as with bfloat16";
  const Model m(GetParam());
  const Tokenizer tokenizer = make_tokenizer();
  constexpr std::int64_t samples = 5;
  GenerateOptions options;
  options.seed = 9;
  options.logprobs = 1;
  options.samples = samples;
  std::vector<Row> rows;
  Results expected;
  for (const std::size_t prompt : emulated() ? std::vector<std::size_t>{6, 1} : std::vector<std::size_t>{6, 1, 13, 23}) {
    Row row = make_row(static_cast<std::int64_t>(prompt), prompt, 9);
    row.temperature = 1.4f;
    if (prompt == 13) row.seed = 77;
    for (row.sample = 0; row.sample < samples; ++row.sample) {
      rows.push_back(row);
      expected.merge(alone(m, &tokenizer, options, {row}));  // no other sample is near: the prompt is prefilled for it
      const Expected e = oracle(m, row, 9, true);
      ASSERT_GT(e.smallest_gap, 1e-4) << "row " << row.index << ", sample " << row.sample << ": choose another seed";
      EXPECT_EQ(expected.at({row.index, row.sample}).tokens, e.tokens) << "row " << row.index << ", sample " << row.sample;
    }
  }
  for (const std::int64_t batch : emulated() ? std::vector<std::int64_t>{6} : std::vector<std::int64_t>{1, 2, 3, 6, 32}) {
    for (const Sync sync : {Sync::tokens, Sync::logits}) {
      options.batch_size = batch;
      options.sync = sync;
      options.prefill_chunk = batch == 32 ? 512 : batch;
      options.sync_every = batch;
      GenerateStats stats;
      expect_same(expected, run(m, &tokenizer, group->world(), options, rows, &stats), fmt::format("batch {}, sync {}", batch, static_cast<int>(sync)));
      // With all samples in flight at once a rank prefills a prompt once: its other samples compute the last token alone.
      if (batch == 32 && group->size() == 1) {
        EXPECT_EQ(stats.prompt_tokens, 6 + 1 + 13 + 23 + 4 * (samples - 1));
      }
    }
  }
}

// A row that is drawn once more than it says loses that draw and nothing else. It is known beforehand of rows that end by their length or context.
TEST_P(Generate, RunningAheadOfTheHostChangesNothing) {
  if (emulated() && GetParam() == DType::f32) GTEST_SKIP() << "takes long; as with bfloat16";
  const Model m(GetParam());
  const Tokenizer tokenizer = make_tokenizer();
  const std::vector<Row> all = make_rows(m), rows = {all[2], all[4], all[7], all[10], all[14], all[15], all[16], all[17]};
  for (const std::int64_t sync_every : {1, 3}) {
    GenerateOptions options;
    options.seed = 9;
    options.logprobs = sync_every == 1 ? 2 : -1;
    options.batch_size = 2 * group->size();
    options.prefill_chunk = 7;
    options.sync_every = sync_every;
    options.run_ahead = false;
    GenerateStats behind, ahead;
    const Results expected = run(m, &tokenizer, group->world(), options, rows, &behind);
    options.run_ahead = true;
    expect_same(expected, run(m, &tokenizer, group->world(), options, rows, &ahead), fmt::format("{} steps a round", sync_every));
    std::int64_t surprises = 0;
    for (const Row& row : rows) {
      const auto count = std::ssize(expected.at({row.index, 0}).tokens);
      surprises += expected.at({row.index, 0}).finish == Finish::stop && count < row.max_new_tokens && std::ssize(*row.prompt) + count < m.config.seqlen;
    }
    ASSERT_GE(surprises, 3);
    EXPECT_EQ(ahead.steps, behind.steps);
    EXPECT_EQ(behind.dropped_draws, 0);
    EXPECT_EQ(ahead.dropped_draws, on_cuda() ? surprises : 0);
  }
}

// The seed's sampler over one static batch: argmax first, then key, sub = split(key) and one draw over [B, V].
TEST_P(Generate, RngJaxDrawsOverTheBatch) {
  const Model m(GetParam());
  constexpr std::uint32_t seed = 12;
  std::vector<Row> rows;
  for (const std::size_t prompt : {3, 9, 1, 6, 17}) {
    Row& row = rows.emplace_back(make_row(std::ssize(rows), prompt, 6));
    row.temperature = 0.9f;
    row.top_k = 10;
  }
  std::vector<Tokens> all;
  for (const Row& row : rows) all.push_back(*row.prompt);
  Key key{0, seed};
  for (int t = 0; t < 6; ++t) {
    Key sub;
    if (t > 0) sub = threefry(key, 0, 1), key = threefry(key, 0, 0);
    for (std::size_t b = 0; b < rows.size(); ++b) {
      Row row = rows[b];
      if (t == 0) row.temperature = 0;
      double gap = 0;
      all[b].push_back(draw(logits_after(m, all[b]), row, sub, static_cast<std::uint32_t>(b) * 61, gap));
      ASSERT_GT(gap, 1e-4) << "choose another seed";
    }
  }
  for (const std::int64_t batch : {5, 8}) {
    for (const Sync sync : {Sync::tokens, Sync::logits}) {
      GenerateOptions options;
      options.seed = seed;
      options.rng = Rng::jax;
      options.batch_size = batch;
      options.sync = sync;
      for (const auto& [at, c] : run(m, nullptr, group->world(), options, rows)) {
        const Tokens& whole = all[static_cast<std::size_t>(at.first)];
        EXPECT_EQ(c.tokens, Tokens(whole.end() - 6, whole.end())) << "row " << at.first;
      }
    }
  }
}

TEST_P(Generate, FewerRowsThanRanksAndNone) {
  const Model m(GetParam());
  for (const Sync sync : {Sync::tokens, Sync::logits}) {
    GenerateOptions options;
    options.sync = sync;
    EXPECT_TRUE(run(m, nullptr, group->world(), options, {}).empty());
    for (std::int64_t n = 1; n <= group->size(); ++n) {
      std::vector<Row> rows;
      for (std::int64_t i = 0; i < n; ++i) rows.push_back(make_row(i, static_cast<std::size_t>(3 + i), 4 + i));
      expect_same(alone(m, nullptr, options, rows), run(m, nullptr, group->world(), options, rows), fmt::format("{} rows", n));
    }
  }
}

// Two rows on rank 0: the short prompt's row draws in every step, while the long prompt comes in by two tokens a step.
TEST(GenerateChunks, ALongPromptStallsNobody) {
  const Model m(DType::f32);
  GenerateOptions options;
  options.prefill_chunk = 2;
  options.sync_every = 1;
  options.batch_size = 2 * group->size();
  std::vector<Row> rows = {make_row(0, 2, 5), make_row(9, 20, 3)};  // both are rank 0's, which gets one row more than the others
  for (int r = 1; r < group->size(); ++r) rows.push_back(make_row(r, 1, 1));
  std::map<std::int64_t, int> finished;  // row → step
  int step = -1;
  std::size_t next = 0;
  Generator generator(m.gpt, nullptr, group->world(), options);
  generator.run([&]() -> std::optional<Row> { return next < rows.size() ? std::optional(rows[next++]) : std::nullopt; },
                [&](const Row& row, Completion&&) { finished[row.index] = step; },
                [&](const GenerateStats& s) {
                  step = static_cast<int>(s.steps);
                  return true;
                });
  EXPECT_EQ(finished[0], 4);
  EXPECT_EQ(finished[9], 12) << "ten steps of prefill after the first, the last of which draws, and two more";
}

TEST(GenerateStops, AfterTheStepInWhichOneRankSaysSo) {
  const Model m(DType::f32);
  const int odd = group->size() - 1;
  GenerateOptions options;
  options.sync_every = 1;
  for (const int steps : {1, 2, 5}) {
    int finished = 0, given = 0;
    Generator generator(m.gpt, nullptr, group->world(), options);
    const GenerateStats stats = generator.run(
        [&]() -> std::optional<Row> {
          if (given == 6) return std::nullopt;
          const int index = given++;
          return make_row(index, 3, index < 3 ? 2 : 9);
        },
        [&](const Row& row, Completion&& c) {
          ++finished;
          EXPECT_LT(row.index, 3);
          EXPECT_EQ(c.tokens.size(), 2u);
        },
        [&](const GenerateStats& s) {
          EXPECT_EQ(s.in_flight, s.steps < 2 ? 6 : 3);
          return group->rank() != odd || s.steps + 1 < steps;
        });
    EXPECT_EQ(stats.steps, steps);
    EXPECT_TRUE(stats.stopped);
    EXPECT_EQ(finished, steps > 1 ? 3 : 0);
    EXPECT_EQ(given, 6);
  }
}

// What every rank hears when one rank is otherwise.
template <typename Spoil>
void expect_disagreement(Sync sync, const char* what, const Spoil& spoil) {
  const Model m(DType::f32);
  const int odd = group->size() - 1;
  GenerateOptions options;
  options.sync = sync;
  std::vector<Row> rows;
  for (int i = 0; i < 6; ++i) {
    rows.push_back(make_row(i, 5, 8));
    rows.back().temperature = 1;
  }
  if (group->rank() == odd) spoil(m, options, rows);
  std::size_t next = 0;
  Generator generator(m.gpt, nullptr, group->world(), options);
  try {
    generator.run([&]() -> std::optional<Row> { return next < rows.size() ? std::optional(rows[next++]) : std::nullopt; }, [](const Row&, Completion&&) {}, [](const GenerateStats&) { return true; });
    EXPECT_EQ(group->size(), 1) << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), Fault::rank);
    EXPECT_THAT(e.what(), HasSubstr(fmt::format("step 0: {} differ between ranks: rank {} ", what, odd))) << "rank " << group->rank();
  }
}

TEST(GenerateSync, ARankThatIsOtherwiseIsNamedWithTheStep) {
  for (const Sync sync : {Sync::tokens, Sync::logits}) {
    expect_disagreement(sync, "the rows in flight", [](const Model&, GenerateOptions&, std::vector<Row>& rows) { rows[4].max_new_tokens = 4; });
    expect_disagreement(sync, "the rows in flight", [](const Model&, GenerateOptions&, std::vector<Row>& rows) { rows[1].prompt = rows[2].prompt; });
  }
  expect_disagreement(Sync::logits, "the drawn tokens", [](const Model&, GenerateOptions& options, std::vector<Row>&) { options.seed = 1; });
  expect_disagreement(Sync::tokens, "the weights in memory", [](const Model& m, GenerateOptions&, std::vector<Row>&) {
    const Tensor first = m.gpt.weights().embed.slice(0, 1), spoilt = down(*m.device, first);
    static_cast<std::byte*>(spoilt.raw())[0] ^= std::byte{1};
    m.device->copy(spoilt, first);
  });
}

}  // namespace
}  // namespace kvmesh
