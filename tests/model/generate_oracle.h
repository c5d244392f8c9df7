// Rows for tests of generating, and what each must say: a whole uncached pass for each token and a draw written from the contract's section 5, with a
// threefry of its own.
#pragma once

#include "comm/agreement.h"
#include "model/generate.h"
#include "tests/model/scratch.h"
#include "tests/model/twin.h"
#include "tests/runtime/test_device.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace kvmesh::test {

using Tokens = std::vector<std::int32_t>;

inline ModelConfig tiny() {
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

/// Ids 0 … 25 are letters, 26 … 60 two letters each; the other bytes follow, beyond the model's vocabulary.
inline std::string token_bytes(std::int32_t id) {
  const auto letter = [](std::int32_t i) { return static_cast<char>('a' + i % 26); };
  return id < 26 ? std::string{letter(id)} : std::string{letter(id), letter(id * 7 + id / 26)};
}

inline Tokenizer make_tokenizer() {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const Scratch folder;
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
  Weights weights;
  std::unique_ptr<Device> device;
  Gpt gpt;
  explicit Model(DType dtype, int threads = 1, unsigned seed = 7)
      : weights(random_weights(config, dtype, seed)), device(test_device(threads)), gpt(config, dtype, pack(config, dtype, weights, *device), *device) {}
};

/// The logits after all of `tokens`: one pass over an empty cache.
inline std::vector<float> logits_after(const Model& m, const Tokens& tokens) {
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

/// Threefry-2x32 with 20 rounds, from the paper (Salmon et al., 2011).
using Key = std::pair<std::uint32_t, std::uint32_t>;
inline Key threefry(Key key, std::uint32_t x0, std::uint32_t x1) {
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

inline Key folded(Key key, std::uint32_t data) { return threefry(key, 0, data); }

inline double gumbel_of(Key key, std::uint32_t count) {
  const Key x = threefry(key, 0, count);
  const std::uint32_t bits = x.first ^ x.second;
  const double u = std::max(static_cast<double>(bits >> 9) * 0x1p-23, 0x1p-126);
  return -std::log(-std::log(u));
}

/// The token that a row draws from `logits`, in float64. `gap`: how far the second is behind; a probability that is close to a filter's edge makes it 0.
inline std::int32_t draw(const std::vector<float>& logits, const Row& row, Key key, std::uint32_t first_count, double& gap) {
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

inline Expected oracle(const Model& m, const Row& row, std::uint32_t seed, bool samples) {
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

inline Row make_row(std::int64_t index, std::size_t prompt_tokens, std::int64_t max_new_tokens) {
  std::mt19937 random(static_cast<unsigned>(100 + index));
  Tokens prompt(prompt_tokens);
  for (std::int32_t& t : prompt) t = static_cast<std::int32_t>(random() % 61);
  Row row;
  row.index = index;
  row.prompt = std::make_shared<const Tokens>(prompt);
  row.max_new_tokens = max_new_tokens;
  return row;
}

/// Every way to draw and every way to stop.
inline std::vector<Row> make_rows(const Model& m) {
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

/// Runs the rows in the order given; their order of finishing must be the same on all ranks.
inline Results run(const Model& m, const Tokenizer* tokenizer, Communicator& ranks, const GenerateOptions& options, const std::vector<Row>& rows, GenerateStats* stats_out = nullptr) {
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

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) { return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0); }

inline void expect_same(const Results& a, const Results& b, const std::string& what) {
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

inline Results alone(const Model& m, const Tokenizer* tokenizer, GenerateOptions options, const std::vector<Row>& rows) {
  const auto self = make_self_communicator();
  options.batch_size = 1;
  return run(m, tokenizer, *self, options, rows);
}

}  // namespace kvmesh::test
