// The estimate against what is really allocated.
#include "model/memory.h"

#include "model/gpt.h"
#include "tests/model/twin.h"

#include <gmock/gmock-matchers.h>
#include <gtest/gtest.h>

namespace kvmesh {
namespace {

constexpr std::int64_t mebi = 1 << 20;

ModelConfig small(std::int64_t vocab) {
  ModelConfig c;
  c.seqlen = 96;
  c.vocab_size = vocab;
  c.d_emb = 48;
  c.num_layers = 3;
  c.q_heads = 6;
  c.kv_heads = 2;
  return c;
}

std::int64_t sum(std::initializer_list<Tensor> tensors) {
  std::int64_t bytes = 0;
  for (const Tensor& t : tensors) bytes += static_cast<std::int64_t>(t.bytes());
  return bytes;
}

void expect_close(std::int64_t estimate, std::int64_t allocated) {
  EXPECT_GE(estimate, allocated);
  EXPECT_LE(estimate, allocated + allocated / 50 + 8192);  // rounding of each allocation, ids
}

TEST(Memory, IsWhatAGeneratorAllocates) {
  const auto device = make_device("cpu", {.threads = 1});
  for (const auto& [dtype, quantize] : {std::pair(DType::f32, Quantize::none), {DType::bf16, Quantize::none}, {DType::bf16, Quantize::int8}}) {
    const ModelConfig config = small(301);
    const MemoryNeeds needs = memory_needs(config, dtype, *device, false, quantize);
    const GptWeights weights = test::pack(config, dtype, test::random_weights(config, dtype, 1), *device, quantize);
    std::int64_t packed = sum({weights.embed, weights.lm_head.data});
    for (const GptWeights::Block& b : weights.blocks) packed += sum({b.qkv.data, b.wo.data, b.fc1.data, b.fc2.data});
    expect_close(needs.weights, packed);

    const Gpt gpt(config, dtype, weights, *device);
    const Gpt::Workspace w(gpt, Gpt::chunk_tokens);
    const std::int64_t rope = config.seqlen * config.head_dim() * 4;
    expect_close(needs.activations, sum({w.x, w.normed, w.last, w.qkv, w.q, w.attended, w.hidden}) + rope);

    constexpr std::int64_t rows = 5;
    const KvCache cache(*device, config, dtype, rows, config.seqlen);
    std::int64_t kept = rows * config.vocab_size * 4;  // logits
    for (std::int64_t i = 0; i < config.num_layers; ++i) kept += sum({cache.layer(i).k, cache.layer(i).v});
    EXPECT_EQ(needs.row * rows, kept);
    EXPECT_EQ(needs.bytes(rows, rows), needs.weights + needs.activations + kept);
    EXPECT_EQ(memory_needs(config, dtype, *device, true).gathered_row, config.vocab_size * 4);
  }
}

TEST(Memory, TheLargestBatchFitsAndOneRowMoreARankDoesNot) {
  for (const MemoryNeeds& needs : {MemoryNeeds{100, 50, 7, 0}, MemoryNeeds{100, 50, 7, 3}}) {
    for (const int ranks : {1, 2, 5}) {
      for (const std::int64_t available : {0, 149, 150, 157, 160, 1000, 1001, 99'999}) {
        const std::int64_t batch = largest_batch(needs, available, ranks);
        EXPECT_EQ(batch % ranks, 0);
        EXPECT_TRUE(batch == 0 || needs.bytes(batch / ranks, batch) <= available);
        EXPECT_GT(needs.bytes(batch / ranks + 1, batch + ranks), available);
      }
    }
  }
}

TEST(Memory, WhatDoesNotFitIsToldWithTheNumbers) {
  const MemoryNeeds needs{1000 * mebi, 24 * mebi, 100 * mebi, 0};
  check_memory(needs, 5024 * mebi, 40, 1);
  check_memory(needs, 5024 * mebi, 80, 2);
  try {
    check_memory(needs, 5024 * mebi, 81, 2);
    FAIL() << "41 rows do not fit";
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), Fault::usage);
    EXPECT_STREQ(e.what(), "--batch-size 81 needs 5.00 GiB of memory on a rank: 1000.0 MiB for weights, 24.0 MiB for activations, 100.0 MiB for each of 41 rows; "
                           "4.91 GiB are free: --batch-size 80 fits");
  }
  try {
    check_memory(needs, 1100 * mebi, 1, 1);
    FAIL() << "one row does not fit";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("1.07 GiB are free: not even one row fits"));
  }
}

}  // namespace
}  // namespace kvmesh
