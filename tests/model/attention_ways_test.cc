// A whole model in bfloat16 with each attention that a device has: near the CPU's float32 over a long generation of a ragged batch, and a row's bits whatever its company.
#include "model/gpt.h"

#include "tests/runtime/test_device.h"
#include "twin.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

namespace kvmesh {
namespace {

ModelConfig small(std::string pattern) {
  ModelConfig c;
  c.seqlen = 704;
  c.vocab_size = 97;
  c.d_emb = 32;
  c.num_layers = 2;
  c.q_heads = 4;
  c.kv_heads = 2;
  c.window_pattern = std::move(pattern);
  c.local_window_size = 100;
  return c;
}

std::vector<Attention> ways() { return on_cuda() ? std::vector{Attention::own, Attention::cudnn} : std::vector{Attention::own}; }
const char* name_of(Attention way) { return way == Attention::own ? "native" : "cudnn"; }

/// Or nothing, where this build has no cuDNN.
std::unique_ptr<Device> device_with(Attention way) { return way == Attention::cudnn ? cudnn_device() : test_device(2, way); }

struct Model {
  std::unique_ptr<Device> device;
  Gpt gpt;
  Model(const ModelConfig& c, DType dtype, std::unique_ptr<Device> d) : device(std::move(d)), gpt(c, dtype, test::pack(c, dtype, test::random_weights(c, DType::bf16, 7), *device), *device) {}
};

using Rows = std::vector<std::vector<std::int32_t>>;

struct Piece {
  std::size_t row, begin, count;  // tokens [begin, begin + count) of a row, which sits in the place of that number
};

/// One cache, filled by passes; rows begin at `starts`.
class Session {
 public:
  Session(const Model& m, std::vector<std::int64_t> starts, std::int64_t first_place = 0)
      : m_(m), starts_(std::move(starts)), first_place_(first_place), cache_(*m.device, m.gpt.config(), m.gpt.dtype(), first_place + std::ssize(starts_), m.gpt.config().seqlen),
        workspace_(m.gpt, Gpt::chunk_tokens), logits_(m.device->empty(DType::f32, {std::ssize(starts_), m.gpt.config().vocab_size})) {}

  /// Logits [runs, V] of each run's last token.
  std::vector<float> pass(const Rows& rows, const std::vector<Piece>& runs) {
    std::vector<std::int32_t> tokens, wanted;
    std::vector<Segment> segments;
    for (const Piece& r : runs) {
      const std::int64_t start = starts_[r.row];
      segments.push_back({start, start + static_cast<std::int64_t>(r.begin), static_cast<std::int32_t>(first_place_ + static_cast<std::int64_t>(r.row)), static_cast<std::int32_t>(r.count),
                          static_cast<std::int32_t>(tokens.size())});
      const auto from = rows[r.row].begin() + static_cast<std::ptrdiff_t>(r.begin);
      tokens.insert(tokens.end(), from, from + static_cast<std::ptrdiff_t>(r.count));
      wanted.push_back(static_cast<std::int32_t>(tokens.size()) - 1);
    }
    const Tensor out = logits_.slice(0, std::ssize(runs));
    m_.gpt.forward(tokens, segments, wanted, cache_, workspace_, out);
    const Tensor there = down(*m_.device, out);
    return {there.data<float>(), there.data<float>() + there.numel()};
  }

 private:
  const Model& m_;
  std::vector<std::int64_t> starts_;
  std::int64_t first_place_;
  KvCache cache_;
  Gpt::Workspace workspace_;
  Tensor logits_;
};

std::vector<double> log_softmax_of(const std::vector<float>& logits, std::size_t row, std::int64_t vocab) {
  const auto v = static_cast<std::ptrdiff_t>(vocab);
  return test::log_softmax({logits.begin() + static_cast<std::ptrdiff_t>(row) * v, logits.begin() + (static_cast<std::ptrdiff_t>(row) + 1) * v});
}

constexpr std::size_t new_tokens = 520;
const std::vector<std::size_t> prompts = {1, 7, 40, 90};

/// All rows' prompts, then step by step what the CPU chose: the log-probabilities at each step.
std::vector<std::vector<std::vector<double>>> generate(const Model& m, Rows& rows, std::int64_t end, bool choose) {
  std::vector<std::int64_t> starts;
  std::vector<Piece> runs;
  for (std::size_t r = 0; r < prompts.size(); ++r) {
    starts.push_back(end - static_cast<std::int64_t>(prompts[r]));
    runs.push_back({r, 0, prompts[r]});
  }
  Session session(m, starts);
  std::vector<std::vector<std::vector<double>>> steps;
  for (std::size_t step = 0; step <= new_tokens; ++step) {
    const std::vector<float> logits = session.pass(rows, runs);
    steps.emplace_back();
    for (std::size_t r = 0; r < prompts.size(); ++r) {
      steps.back().push_back(log_softmax_of(logits, r, m.gpt.config().vocab_size));
      const auto& lp = steps.back().back();
      if (choose) rows[r].push_back(static_cast<std::int32_t>(std::max_element(lp.begin(), lp.end()) - lp.begin()));
      runs[r] = {r, prompts[r] + step, 1};
    }
  }
  return steps;
}

// From the same (bfloat16) weights the CPU in float32 generates; the device is fed the same tokens. The ring ends in the middle, so that rows lie whole, then wrap.
TEST(AttentionWays, long_generations_stay_near_float32) {
  for (const char* pattern : emulated() ? std::vector<const char*>{"SL"} : std::vector<const char*>{"L", "SL"}) {
    const ModelConfig config = small(pattern);
    Rows rows(prompts.size());
    for (std::size_t r = 0; r < prompts.size(); ++r) {
      for (std::size_t i = 0; i < prompts[r]; ++i) rows[r].push_back(static_cast<std::int32_t>((31 * r + 7 * i) % 97));
    }
    const std::int64_t end = 2 * config.seqlen - 300;
    const Model reference(config, DType::f32, make_device("cpu", {.threads = 2}));
    const auto truth = generate(reference, rows, end, true);
    for (const Attention way : ways()) {
      auto device = device_with(way);
      if (!device) continue;
      const Model m(config, DType::bf16, std::move(device));
      const auto mine = generate(m, rows, end, false);
      double sum = 0, worst = 0;
      for (std::size_t step = 0; step < truth.size(); ++step) {
        for (std::size_t r = 0; r < prompts.size(); ++r) {
          for (std::size_t v = 0; v < truth[step][r].size(); ++v) {
            const double off = std::abs(mine[step][r][v] - truth[step][r][v]);
            ASSERT_TRUE(std::isfinite(off)) << name_of(way) << ", step " << step << ", row " << r;
            sum += off, worst = std::max(worst, off);
          }
        }
      }
      const double mean = sum / static_cast<double>(truth.size() * prompts.size() * truth[0][0].size());
      std::printf("note: %s, pattern %s: log-probabilities are off by %.4f on average, %.4f at most, over %zu steps\n", name_of(way), pattern, mean, worst, new_tokens);
      EXPECT_LT(mean, 0.02) << name_of(way);
      EXPECT_LT(worst, 0.25) << name_of(way);
    }
  }
}

// The bits of a row's logits at its last tokens: alone and whole; cut into chunks; decoded token by token; at other places of the ring; in company. Our own attention promises them, cuDNN's
// is asked.
TEST(AttentionWays, a_rows_bits) {
  const ModelConfig config = small("L");
  const std::size_t length = 150, size = static_cast<std::size_t>(config.seqlen);
  Rows rows(5);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    for (std::size_t i = 0; i < length; ++i) rows[r].push_back(static_cast<std::int32_t>((31 * r + 7 * i + i * i) % 97));
  }
  for (const Attention way : ways()) {
    auto device = device_with(way);
    if (!device) continue;
    const Model m(config, DType::bf16, std::move(device));
    const auto vocab = static_cast<std::size_t>(config.vocab_size);
    /// Row 0, the last of its tokens decoded one by one.
    const auto alone = [&](std::int64_t start, std::int64_t place, std::vector<std::size_t> cuts) {
      Session session(m, {start}, place);
      std::vector<float> all;
      std::size_t done = 0;
      for (const std::size_t count : cuts) {
        all = session.pass(rows, {{0, done, count}});
        done += count;
      }
      for (; done < length; ++done) {
        const auto step = session.pass(rows, {{0, done, 1}});
        all.insert(all.end(), step.begin(), step.end());
      }
      return all;
    };
    const auto in_company = [&] {
      Session session(m, {0, 40, 90, 3, 10});
      std::vector<Piece> runs = {{0, 0, 140}, {1, 0, 100}, {2, 0, 50}, {3, 0, 137}, {4, 0, 130}};
      std::vector<float> all;
      for (std::size_t step = 0; step <= 10; ++step) {
        const auto logits = session.pass(rows, runs);
        all.insert(all.end(), logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(vocab));
        for (Piece& r : runs) r = {r.row, r.begin + r.count, 1};
      }
      return all;
    };
    const std::vector<float> whole = alone(0, 0, {140});
    for (const auto& [what, other] : {std::pair("in another place", alone(0, 3, {140})), {"elsewhere in the ring", alone(37, 0, {140})}, {"prefilled in chunks", alone(0, 0, {64, 13, 63})},
                                      {"in company", in_company()}, {"across the ring's end", alone(static_cast<std::int64_t>(size) - 60, 0, {140})}}) {
      const bool same = whole.size() == other.size() && std::memcmp(whole.data(), other.data(), whole.size() * sizeof(float)) == 0;
      std::printf("note: %s: a row %s has %s bits\n", name_of(way), what, same ? "the same" : "other");
      EXPECT_TRUE(same || way != Attention::own) << what;
      double worst = 0;
      for (std::size_t i = 0; i < whole.size(); ++i) worst = std::max(worst, static_cast<double>(std::abs(whole[i] - other[i])));
      EXPECT_LT(worst, 0.1) << name_of(way) << " " << what;
    }
  }
}

// A step that is recorded for a row in the first place is repeated for one in the last, whose offsets cuDNN could not be told (the emulated one: from 2^20 elements on).
TEST(AttentionWays, a_recorded_step_serves_every_place) {
  const ModelConfig config = small("L");
  constexpr std::size_t places = 100, length = 20;
  Rows rows(places);
  for (std::size_t r = 0; r < places; ++r) {
    for (std::size_t i = 0; i < length; ++i) rows[r].push_back(static_cast<std::int32_t>((7 * i + i * i) % 97));
  }
  for (const Attention way : ways()) {
    auto device = device_with(way);
    if (!device) continue;
    const Model m(config, DType::bf16, std::move(device));
    Session session(m, std::vector<std::int64_t>(places, 0));
    std::vector<std::vector<float>> last;
    for (const std::size_t row : {std::size_t{0}, places - 1}) {
      session.pass(rows, {{row, 0, length - 4}});
      for (std::size_t i = length - 4; i < length; ++i) last.push_back(session.pass(rows, {{row, i, 1}}));
    }
    for (std::size_t i = 0; i < 4; ++i) EXPECT_EQ(last[i], last[i + 4]) << name_of(way) << ", step " << i;
  }
}

}  // namespace
}  // namespace kvmesh
