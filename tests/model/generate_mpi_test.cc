// Generating on 1 to 4 ranks. What each row must say is worked out by every rank alone (Oracle): a whole uncached pass for each token and a
// draw written from the contract's section 5, with a threefry of its own. Then every way to run the rows must give the bits of one row alone.
#include "tests/comm/mpi_main.h"

#include "comm/agreement.h"
#include "model/generate.h"
#include "tests/model/scratch.h"
#include "tests/model/twin.h"
#include "tests/runtime/test_device.h"

#include <gmock/gmock-matchers.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <set>

namespace kvmesh {
namespace {

using ::testing::HasSubstr;
using testing::group;
using Tokens = std::vector<std::int32_t>;

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

// Ids 0 … 25 are letters, 26 … 60 two letters each; the other bytes follow, beyond the model's vocabulary.
std::string token_bytes(std::int32_t id) {
  const auto letter = [](std::int32_t i) { return static_cast<char>('a' + i % 26); };
  return id < 26 ? std::string{letter(id)} : std::string{letter(id), letter(id * 7 + id / 26)};
}

Tokenizer make_tokenizer() {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const test::Scratch folder;
  std::string text;
  std::int32_t rank = 0;
  const auto add = [&](const std::string& bytes) {
    const auto at = [&](std::size_t i) { return i < bytes.size() ? static_cast<unsigned char>(bytes[i]) : 0u; };
    const unsigned bits = at(0) << 16 | at(1) << 8 | at(2);
    text += {digits[bits >> 18], digits[bits >> 12 & 63], bytes.size() > 1 ? digits[bits >> 6 & 63] : '=', bytes.size() > 2 ? digits[bits & 63] : '='};
    text += " " + std::to_string(rank++) + "\n";
  };
  for (std::int32_t id = 0; id < 61; ++id) add(token_bytes(id));
  for (int byte = 0; byte < 256; ++byte) {
    if (byte < 'a' || byte > 'z') add(std::string(1, static_cast<char>(byte)));
  }
  return Tokenizer(folder.write("tokenizer.tiktoken", text));
}

struct Model {
  ModelConfig config = tiny();
  test::Weights weights;
  std::unique_ptr<Device> device;
  Gpt gpt;
  explicit Model(DType dtype, int threads = 1, unsigned seed = 7)
      : weights(test::random_weights(config, dtype, seed)), device(test_device(threads)), gpt(config, dtype, test::pack(config, dtype, weights, *device), *device) {}
};

// The logits after all of `tokens`: one pass over an empty cache.
std::vector<float> logits_after(const Model& m, const Tokens& tokens) {
  const KvCache cache(*m.device, m.config, m.gpt.dtype(), 1, m.config.seqlen);
  Gpt::Workspace workspace(m.gpt, Gpt::chunk_tokens);
  const auto n = static_cast<std::int32_t>(tokens.size());
  const Segment segment{0, 0, 0, n, 0};
  const std::int32_t last = n - 1;
  const Tensor logits = m.device->empty(DType::f32, {1, m.config.vocab_size});
  m.gpt.forward(tokens, std::span(&segment, 1), std::span(&last, 1), cache, workspace, logits);
  const Tensor there = down(*m.device, logits);
  const auto values = there.span<float>();
  return {values.begin(), values.end()};
}

// Threefry-2x32 with 20 rounds, from the paper (Salmon et al., 2011).
using Key = std::pair<std::uint32_t, std::uint32_t>;
Key threefry(Key key, std::uint32_t x0, std::uint32_t x1) {
  const std::uint32_t ks[3] = {key.first, key.second, 0x1BD11BDAu ^ key.first ^ key.second};
  static constexpr int rotation[8] = {13, 15, 26, 6, 17, 29, 16, 24};
  x0 += ks[0], x1 += ks[1];
  for (std::uint32_t round = 0; round < 20; ++round) {
    x0 += x1;
    x1 = std::rotl(x1, rotation[round % 8]) ^ x0;
    if (round % 4 != 3) continue;
    const std::uint32_t injected = round / 4 + 1;
    x0 += ks[injected % 3], x1 += ks[(injected + 1) % 3] + injected;
  }
  return {x0, x1};
}

Key folded(Key key, std::uint32_t data) { return threefry(key, 0, data); }

double gumbel_of(Key key, std::uint32_t count) {
  const Key x = threefry(key, 0, count);
  const std::uint32_t bits = x.first ^ x.second;
  const double u = std::max(static_cast<double>(bits >> 9) * 0x1p-23, 0x1p-126);
  return -std::log(-std::log(u));
}

// The token that a row draws from `logits`, in float64. `gap`: how far the second is behind; a probability that is close to a filter's edge makes it 0.
std::int32_t draw(const std::vector<float>& logits, const Row& row, Key key, std::uint32_t first_count, double& gap) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  if (row.temperature <= 0) {
    gap = static_cast<double>(logits[order[0]]) - static_cast<double>(logits[order[1]]);
    return static_cast<std::int32_t>(order[0]);
  }
  if (row.top_k > 0 && row.top_k < std::ssize(order)) {
    const float threshold = logits[order[static_cast<std::size_t>(row.top_k) - 1]];
    std::erase_if(order, [&](std::size_t v) { return logits[v] < threshold; });
  }
  std::vector<double> scaled, p;
  for (const std::size_t v : order) scaled.push_back(static_cast<double>(logits[v]) / static_cast<double>(row.temperature));
  for (const double s : scaled) p.push_back(std::exp(s - scaled[0]));
  const double sum = std::accumulate(p.begin(), p.end(), 0.0);
  bool edge = false;
  std::size_t kept = 0;
  for (double before = 0; kept < p.size() && (row.top_p >= 1 || before < static_cast<double>(row.top_p) * sum); ++kept) {
    before += p[kept];
    edge |= row.top_p < 1 && std::abs(before / sum - static_cast<double>(row.top_p)) < 1e-5;
  }
  double best = -1e30, second = -1e30;
  std::size_t token = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    edge |= row.min_p > 0 && std::abs(p[i] - static_cast<double>(row.min_p)) < 1e-5;
    if (p[i] < static_cast<double>(row.min_p)) continue;
    const double value = scaled[i] + gumbel_of(key, first_count + static_cast<std::uint32_t>(order[i]));
    if (value > best) second = best, best = value, token = order[i];
    else second = std::max(second, value);
  }
  gap = edge ? 0 : best - second;
  return static_cast<std::int32_t>(token);
}

struct Expected {
  Tokens tokens;
  std::string bytes;
  Finish finish = Finish::none;
  std::vector<std::vector<float>> logits;  // [tokens][V]
  double smallest_gap = 1e30;
};

Expected oracle(const Model& m, const Row& row, std::uint32_t seed, bool samples) {
  Expected e;
  Key base = row.seed ? Key{0, *row.seed} : folded({0, seed}, static_cast<std::uint32_t>(row.index));
  if (samples) base = folded(base, static_cast<std::uint32_t>(row.sample));
  Tokens all = *row.prompt;
  while (e.finish == Finish::none) {
    e.logits.push_back(logits_after(m, all));
    double gap = 0;
    const std::int32_t token = draw(e.logits.back(), row, folded(base, static_cast<std::uint32_t>(e.tokens.size())), 0, gap);
    e.smallest_gap = std::min(e.smallest_gap, gap);
    e.tokens.push_back(token);
    all.push_back(token);
    const bool stops = std::count(row.stop_tokens.begin(), row.stop_tokens.end(), token) > 0;
    if (!stops) e.bytes += token_bytes(token);
    std::size_t cut = e.bytes.size() + 1;
    for (const std::string& s : row.stop) cut = std::min(cut, e.bytes.find(s));
    if (stops || cut <= e.bytes.size()) e.finish = Finish::stop;
    else if (std::ssize(e.tokens) == row.max_new_tokens) e.finish = Finish::length;
    else if (std::ssize(all) == m.config.seqlen) e.finish = Finish::context;
    if (cut <= e.bytes.size()) e.bytes.resize(cut);
  }
  return e;
}

Row make_row(std::int64_t index, std::size_t prompt_tokens, std::int64_t max_new_tokens) {
  std::mt19937 random(static_cast<unsigned>(100 + index));
  Tokens prompt(prompt_tokens);
  for (std::int32_t& t : prompt) t = static_cast<std::int32_t>(random() % 61);
  Row row;
  row.index = index;
  row.prompt = std::make_shared<const Tokens>(prompt);
  row.max_new_tokens = max_new_tokens;
  return row;
}

// Every way to draw and every way to stop.
std::vector<Row> make_rows(const Model& m) {
  std::vector<Row> rows;
  const auto add = [&](std::size_t prompt, std::int64_t max_new) -> Row& { return rows.emplace_back(make_row(std::ssize(rows), prompt, max_new)); };
  add(1, 1);
  add(5, 12);
  add(23, 40);  // one token, then the context is full
  add(22, 2);   // both full and long enough: length
  add(22, 40);
  add(1, 40);   // the whole context
  add(7, 9).temperature = 0.8f;
  add(3, 17).temperature = 1.5f;
  rows.back().top_k = 4;
  add(11, 8).temperature = 1.2f;
  rows.back().top_p = 0.7f;
  add(4, 10).temperature = 2.0f;
  rows.back().min_p = 0.2f;
  add(9, 11).temperature = 1.1f;
  rows.back().top_k = 20, rows.back().top_p = 0.9f, rows.back().min_p = 0.05f, rows.back().seed = 4'000'000'000u;
  add(2, 6).temperature = 1;
  rows.back().seed = 0;
  add(6, 5).temperature = -1;  // greedy
  add(16, 8);                  // exactly as long as fits
  // Rows that stop are made from what they would say otherwise.
  const auto unstopped = [&](std::int64_t index, std::size_t prompt, float temperature) {
    Row row = make_row(index, prompt, 14);
    row.temperature = temperature;
    return std::pair(row, oracle(m, row, 9, false));
  };
  const auto index = [&] { return std::ssize(rows); };
  auto [by_token, said] = unstopped(index(), 4, 1);
  by_token.stop_tokens = {60, said.tokens[5], said.tokens[9]};
  rows.push_back(by_token);
  auto [at_once, said_first] = unstopped(index(), 4, 0);
  at_once.stop_tokens = {said_first.tokens[0]};
  rows.push_back(at_once);
  auto [across, said_text] = unstopped(index(), 3, 1.3f);
  const std::string third = token_bytes(said_text.tokens[3]), fourth = token_bytes(said_text.tokens[4]), fifth = token_bytes(said_text.tokens[5]);
  across.stop = {"never said", third.back() + fourth + fifth[0]};
  rows.push_back(across);
  auto [earliest, said_more] = unstopped(index(), 8, 1.3f);
  const std::string all = said_more.bytes;
  earliest.stop = {all.substr(7, 1), all.substr(5, 3), all.substr(6, 2)};  // all end at the same byte: the earliest begin wins
  rows.push_back(earliest);
  return rows;
}

using Results = std::map<std::pair<std::int64_t, std::int64_t>, Completion>;  // by (index, sample)

// Runs the rows in the order given; their order of finishing must be the same on all ranks.
Results run(const Model& m, const Tokenizer* tokenizer, Communicator& ranks, const GenerateOptions& options, const std::vector<Row>& rows, GenerateStats* stats_out = nullptr) {
  Results results;
  std::size_t next = 0, asked_after_end = 0;
  std::uint64_t order = 0;
  Generator generator(m.gpt, tokenizer, ranks, options);
  const GenerateStats stats = generator.run(
      [&]() -> std::optional<Row> {
        asked_after_end += next > rows.size();
        return next++ < rows.size() ? std::optional(rows[next - 1]) : std::nullopt;
      },
      [&](const Row& row, Completion&& c) {
        order = order * 1'000'003 + static_cast<std::uint64_t>(row.index * 64 + row.sample) + 1;
        EXPECT_TRUE(results.emplace(std::pair(row.index, row.sample), std::move(c)).second) << "row " << row.index << " came twice";
      },
      [](const GenerateStats&) { return true; });
  check_agreement(ranks, order, "the order of finished rows");
  EXPECT_EQ(asked_after_end, 0u);
  EXPECT_EQ(stats.rows, std::ssize(rows));
  std::int64_t tokens = 0;
  for (const auto& [key, c] : results) tokens += std::ssize(c.tokens);
  EXPECT_EQ(stats.new_tokens, tokens);
  EXPECT_EQ(stats.decode_tokens, tokens - stats.rows);
  if (stats_out) *stats_out = stats;
  return results;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) { return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0); }

void expect_same(const Results& a, const Results& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (const auto& [key, c] : a) {
    ASSERT_TRUE(b.contains(key)) << what;
    const Completion& d = b.at(key);
    const std::string row = what + ", row " + std::to_string(key.first) + ", sample " + std::to_string(key.second);
    ASSERT_EQ(c.tokens, d.tokens) << row;
    ASSERT_EQ(c.bytes, d.bytes) << row;
    ASSERT_EQ(c.finish, d.finish) << row;
    ASSERT_EQ(c.top_ids, d.top_ids) << row;
    ASSERT_TRUE(same_bits(c.logprobs, d.logprobs)) << row;
    ASSERT_TRUE(same_bits(c.top_logprobs, d.top_logprobs)) << row;
  }
}

Results alone(const Model& m, const Tokenizer* tokenizer, GenerateOptions options, const std::vector<Row>& rows) {
  const auto self = make_self_communicator();
  options.batch_size = 1;
  return run(m, tokenizer, *self, options, rows);
}

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
      const std::vector<double> lp = test::log_softmax({e.logits[t].begin(), e.logits[t].end()});
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
      std::vector<double> logits = test::twin_logits(m.config, m.weights, all).back();
      const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
      EXPECT_NEAR(c.logprobs[t], test::log_softmax(logits)[static_cast<std::size_t>(best)], 1e-4);
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
