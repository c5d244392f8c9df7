// The estimate against what is really allocated.
#include "model/train/train_memory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

namespace kvmesh {
namespace {

/// Of address space: large tensors are mapped each by itself, whether they are touched or not.
std::int64_t mapped_bytes() {
  std::ifstream in("/proc/self/statm");
  std::int64_t pages = 0;
  in >> pages;
  return pages * ::sysconf(_SC_PAGESIZE);
}

ModelConfig shape(std::int64_t vocab, DType dtype) {
  ModelConfig c;
  c.seqlen = 512;
  c.vocab_size = vocab;
  c.d_emb = 256;
  c.num_layers = 3;
  c.q_heads = 8;
  c.kv_heads = 4;
  c.dtype = dtype;
  return c;
}

TrainBatch batch_of(const ModelConfig& c, std::int64_t rows) {
  TrainBatch batch{.ids = {}, .targets = {}, .segments = {}, .rows = rows};
  for (std::int64_t row = 0; row < rows; ++row) {
    Segment s{};
    s.place = static_cast<std::int32_t>(row);
    s.count = static_cast<std::int32_t>(c.seqlen);
    s.offset = static_cast<std::int32_t>(row * c.seqlen);
    batch.segments.push_back(s);
  }
  batch.ids.assign(static_cast<std::size_t>(rows * c.seqlen), 1);
  batch.targets = batch.ids;
  return batch;
}

void expect_what_a_trainer_allocates(const ModelConfig& config, const TrainerOptions& options) {
  const auto device = make_device("cpu", {.threads = 1});
  const auto ranks = make_self_communicator();
  const ParamLayout layout(config);
  const TrainMemory memory = train_memory(config, config.dtype, *device, layout, options, 0, 1, 0);
  const std::int64_t leaves = options.batch.rows / options.batch.micro_rows;
  const Range all{0, layout.size};
  const std::int64_t exchange = TreeSum::memory(leaves, layout.size, {&all, 1}, 0) - TreeSum::memory(leaves, layout.size, {&all, 1}, 0, 0);  // gone after each step
  const std::vector<TrainBatch> batches(static_cast<std::size_t>(leaves), batch_of(config, options.batch.micro_rows));

  const std::int64_t before = mapped_bytes();
  Trainer trainer(config, config.dtype, *device, *ranks, layout, options);
  initialize(config, layout, Init::original, 1, trainer.parameters());
  trainer.parameters_changed();
  trainer.step(0, batches);
  const std::int64_t estimate = memory.bytes() - memory.saving - exchange, allocated = mapped_bytes() - before;
  EXPECT_NEAR(static_cast<double>(estimate), static_cast<double>(allocated), 0.03 * static_cast<double>(allocated)) << to_string(memory);
}

TEST(TrainMemory, IsWhatATrainerAllocates) {
  for (const bool recompute : {false, true}) {
    TrainerOptions options{.optimizer = {}, .batch = {3, 1, {0, 3}}, .recompute = recompute};
    expect_what_a_trainer_allocates(shape(500, DType::f32), options);
    options.optimizer.muon = false;
    options.batch = {2, 2, {0, 1}};
    expect_what_a_trainer_allocates(shape(3000, DType::bf16), options);
  }
}

TEST(TrainMemory, IsDividedAmongRanks) {
  const auto device = make_device("cpu", {.threads = 1});
  const ModelConfig config = shape(500, DType::bf16);
  const ParamLayout layout(config);
  const TrainerOptions options{.optimizer = {}, .batch = {8, 1, {}}, .recompute = false};
  const TrainMemory alone = train_memory(config, DType::bf16, *device, layout, options, 0, 1, 2);
  const TrainMemory first = train_memory(config, DType::bf16, *device, layout, options, 0, 4, 2), last = train_memory(config, DType::bf16, *device, layout, options, 3, 4, 2);
  EXPECT_EQ(alone.gradients, layout.size * 4 * (4 + 1) + 2 * 4 * TreeSum::default_chunk);  // leaves 0 to 7: three nodes and the next term; one goes from the rank to itself
  EXPECT_EQ(alone.activations, last.activations);
  EXPECT_LT(last.gradients, alone.gradients);
  EXPECT_LT(last.optimizer, alone.optimizer / 2);
  EXPECT_EQ(first.saving, layout.size * (8 + 8 + 2 + 4));
  EXPECT_EQ(last.saving, layout.size * 8);
  EXPECT_GT(first.sampling, last.sampling);  // two texts for four ranks
  EXPECT_EQ(train_memory(config, DType::bf16, *device, layout, options, 0, 4, 0).sampling, 0);
}

}  // namespace
}  // namespace kvmesh
