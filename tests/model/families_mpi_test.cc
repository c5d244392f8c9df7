// Folders as transformers writes them (tests/fixtures/families, tiny random models and what transformers computes with them, written down by
// tests/reference/families.py), on 1 to 4 ranks: logits, greedy tokens on ragged batches, the same bits in any company.
#include "model/checkpoint.h"
#include "model/generate.h"

#include "../comm/mpi_main.h"
#include "tests/runtime/test_device.h"
#include "tests/source_dir.h"

#include <nlohmann/json.hpp>

#include <cmath>
#include <cstring>
#include <fstream>
#include <numeric>

namespace kvmesh {
namespace {

using nlohmann::json;
using Ids = std::vector<std::int32_t>;
using testing::group;
namespace fs = std::filesystem;

const fs::path fixtures = source_dir() / "tests/fixtures/families";

class Families : public ::testing::TestWithParam<std::string> {
 protected:
  const fs::path folder_ = fixtures / GetParam();
  const json rows_ = json::parse(std::ifstream(folder_ / "expected.json")).at("rows");
  const ModelConfig config_ = read_config(folder_ / "config.json");
  const std::unique_ptr<Device> device_ = test_device();

  Gpt load(DType dtype) const { return Gpt(config_, dtype, load_weights(folder_, config_, dtype, *device_, *group), *device_); }

  /// Logits [tokens][V] after each token of one row.
  std::vector<std::vector<float>> logits_of(const Gpt& gpt, const Ids& tokens) const {
    const KvCache cache(*device_, config_, gpt.dtype(), 1, config_.seqlen);
    Gpt::Workspace workspace(gpt, Gpt::chunk_tokens);
    const Segment segment{5, 5, 0, static_cast<std::int32_t>(tokens.size()), 0};
    Ids wanted(tokens.size());
    std::iota(wanted.begin(), wanted.end(), 0);
    const Tensor logits = device_->empty(DType::f32, {std::ssize(tokens), config_.vocab_size});
    gpt.forward(tokens, std::span(&segment, 1), wanted, cache, workspace, logits);
    const Tensor there = down(*device_, logits);
    std::vector<std::vector<float>> out;
    for (std::int64_t t = 0; t < std::ssize(tokens); ++t) {
      const auto row = there.slice(t, t + 1).span<float>();
      out.emplace_back(row.begin(), row.end());
    }
    return out;
  }

  /// What the rows of the fixture become, all of them given again and again until there are `count`.
  std::vector<Completion> generate(const Gpt& gpt, Communicator& ranks, std::int64_t batch, std::size_t count) const {
    GenerateOptions options;
    options.batch_size = batch;
    options.logprobs = 2;
    std::vector<Completion> out(count);
    std::size_t next = 0;
    Generator(gpt, nullptr, ranks, options)
        .run(
            [&]() -> std::optional<Row> {
              if (next == count) return std::nullopt;
              Row row;
              row.index = static_cast<std::int64_t>(next);
              row.prompt = std::make_shared<const Ids>(rows_.at(next++ % rows_.size()).at("tokens").get<Ids>());
              row.max_new_tokens = std::ssize(rows_.at(0).at("greedy"));
              return row;
            },
            [&](const Row& row, Completion&& completion) { out[static_cast<std::size_t>(row.index)] = std::move(completion); }, [](const GenerateStats&) { return true; });
    return out;
  }
};

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& entry : fs::directory_iterator(fixtures)) all.push_back(entry.path().filename().string());
  std::sort(all.begin(), all.end());
  if (emulated()) all = {"gpt2", "llama31", "nanochat", "qwen2-window", "qwen3"};
  return all;
}

INSTANTIATE_TEST_SUITE_P(All, Families, ::testing::ValuesIn(names()), [](const auto& p) {
  std::string name = p.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(FamiliesFixtures, are_there) { EXPECT_GE(names().size(), emulated() ? 5u : 14u); }

TEST_P(Families, float32_logits_are_transformers) {
  const Gpt gpt = load(DType::f32);
  double largest = 0;
  bool whole = false;
  for (const json& row : rows_) {
    const auto ours = logits_of(gpt, row.at("tokens"));
    const auto compare = [&](const std::vector<float>& mine, const json& theirs) {
      ASSERT_EQ(mine.size(), theirs.size());
      for (std::size_t v = 0; v < mine.size(); ++v) largest = std::max(largest, std::abs(static_cast<double>(mine[v]) - theirs[v].get<double>()));
    };
    compare(ours.back(), row.at("last"));
    if (!row.contains("logits")) continue;
    whole = true;
    ASSERT_EQ(ours.size(), row.at("logits").size());
    for (std::size_t t = 0; t < ours.size(); ++t) compare(ours[t], row.at("logits").at(t));
  }
  EXPECT_TRUE(whole);
  EXPECT_LT(largest, 1e-4);
  RecordProperty("largest", fmt::format("{:.2g}", largest));
}

// Its roundings move a logit by a few hundredths of the logits' spread, a wrong operation by far more.
TEST_P(Families, bfloat16_logits_are_near) {
  const Gpt gpt = load(DType::bf16);
  double squares = 0, differences = 0;
  for (const json& row : rows_) {
    const std::vector<float> ours = logits_of(gpt, row.at("tokens")).back();
    for (std::size_t v = 0; v < ours.size(); ++v) {
      const auto theirs = row.at("last").at(v).get<double>();
      squares += theirs * theirs;
      differences += (theirs - static_cast<double>(ours[v])) * (theirs - static_cast<double>(ours[v]));
    }
  }
  EXPECT_LT(std::sqrt(differences / squares), 0.05);
}

TEST_P(Families, greedy_tokens_are_transformers_and_bits_do_not_depend_on_company) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Gpt gpt = load(dtype);
    const std::size_t count = emulated() ? rows_.size() : 2 * rows_.size() + 1;
    const std::vector<Completion> together = generate(gpt, group->world(), 4, count);
    const auto self = make_self_communicator();
    const std::vector<Completion> alone = generate(gpt, *self, 1, rows_.size());
    for (std::size_t i = 0; i < count; ++i) {
      const Completion &a = alone[i % rows_.size()], &b = together[i];
      EXPECT_EQ(a.tokens, b.tokens) << "row " << i;
      ASSERT_EQ(a.logprobs.size(), b.logprobs.size());
      EXPECT_EQ(std::memcmp(a.logprobs.data(), b.logprobs.data(), a.logprobs.size() * sizeof(a.logprobs[0])), 0) << "row " << i;
      const json& row = rows_.at(i % rows_.size());
      const auto gaps = row.at("gaps").get<std::vector<double>>();
      if (dtype == DType::bf16 || *std::min_element(gaps.begin(), gaps.end()) < 1e-4) continue;
      EXPECT_EQ(b.tokens, row.at("greedy").get<Ids>()) << "row " << i;
    }
  }
}

}  // namespace
}  // namespace kvmesh
