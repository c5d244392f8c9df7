// The estimate against what is really allocated.
#include "model/train/train_memory.h"
#include "runtime/cuda/cuda.h"

#include <gtest/gtest.h>
#include <malloc.h>
#include <unistd.h>

#include <fstream>

namespace kvmesh {
namespace {

/// Of address space, where large tensors are mapped each by itself, whether they are touched or not; and of what smaller ones have of the heap.
std::int64_t allocated_bytes() {
  std::ifstream in("/proc/self/statm");
  std::int64_t pages = 0;
  in >> pages;
  const struct mallinfo2 heap = ::mallinfo2();
  return pages * ::sysconf(_SC_PAGESIZE) - static_cast<std::int64_t>(heap.arena) + static_cast<std::int64_t>(heap.uordblks);
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

std::int64_t allocated_by_a_step(const ModelConfig& config, const TrainerOptions& options, Device& device) {
  const auto ranks = make_self_communicator();
  const ParamLayout layout(config);
  const std::vector<TrainBatch> batches(static_cast<std::size_t>(options.batch.leaves.size()), batch_of(config, options.batch.micro_rows));
  const std::int64_t before = allocated_bytes();
  Trainer trainer(config, config.dtype, device, *ranks, layout, options);
  initialize(config, layout, Init::original, 1, trainer.parameters());
  trainer.parameters_changed();
  trainer.step(0, batches);
  return allocated_bytes() - before;
}

void expect_what_a_trainer_allocates(const ModelConfig& config, const TrainerOptions& options, Device& device) {
  const ParamLayout layout(config);
  const TrainMemory memory = train_memory(config, config.dtype, device, layout, options, 0, 1, 0);
  const auto estimate = static_cast<double>(memory.bytes() - memory.saving), allocated = static_cast<double>(allocated_by_a_step(config, options, device));
  EXPECT_NEAR(estimate, allocated, 0.003 * allocated) << to_string(memory);
}

TEST(TrainMemory, IsWhatATrainerAllocates) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have a heap of their own";
#endif
  const auto device = make_device("cpu", {.threads = 1});
  for (const bool recompute : {false, true}) {
    TrainerOptions options{.optimizer = {}, .batch = {3, 1, {0, 3}}, .recompute = recompute};
    if (!recompute) allocated_by_a_step(shape(500, DType::f32), options, *device);  // what kernels keep for themselves, once a thread
    expect_what_a_trainer_allocates(shape(500, DType::f32), options, *device);
    options.library_sum = !recompute;
    expect_what_a_trainer_allocates(shape(500, DType::f32), options, *device);
    options.optimizer.muon = false;
    options.batch = {2, 2, {0, 1}};
    expect_what_a_trainer_allocates(shape(3000, DType::bf16), options, *device);
  }
}

/// Many narrow heads, so that what attention keeps for each counts. The emulated GPU tells what is left of its memory.
TEST(TrainMemory, OfADeviceIsWhatATrainerLeavesThere) {
  if (KVMESH_WITH_CUDA) GTEST_SKIP() << "a GPU keeps memory that is free again";
  ModelConfig config = shape(100, DType::f32);
  config.seqlen = 128;
  config.d_emb = 32;
  config.num_layers = 1;
  const auto device = cuda::make_device({});
  const auto ranks = make_self_communicator();
  const ParamLayout layout(config);
  const TrainerOptions options{.optimizer = {.muon = false}, .batch = {4, 4, {0, 1}}};
  const std::int64_t before = device->free_bytes();
  Trainer trainer(config, config.dtype, *device, *ranks, layout, options);
  initialize(config, layout, Init::original, 1, trainer.parameters());
  trainer.parameters_changed();
  const std::vector<TrainBatch> batches = {batch_of(config, 4)};
  trainer.step(0, batches);
  const auto estimate = static_cast<double>(train_memory(config, config.dtype, *device, layout, options, 0, 1, 0).device), taken = static_cast<double>(before - device->free_bytes());
  EXPECT_NEAR(estimate, taken, 0.01 * taken);
}

TEST(TrainMemory, IsDividedAmongRanks) {
  const auto device = make_device("cpu", {.threads = 1});
  const ModelConfig config = shape(500, DType::bf16);
  const ParamLayout layout(config);
  const TrainerOptions options{.optimizer = {}, .batch = {8, 1, {}}, .recompute = false};
  const TrainMemory alone = train_memory(config, DType::bf16, *device, layout, options, 0, 1, 2);
  const TrainMemory first = train_memory(config, DType::bf16, *device, layout, options, 0, 4, 2), last = train_memory(config, DType::bf16, *device, layout, options, 3, 4, 2);
  EXPECT_EQ(alone.gradients, layout.size * 4 * (4 + 1));  // leaves 0 to 7: three nodes and the next term, and own gradients
  EXPECT_EQ(alone.activations, last.activations);
  EXPECT_LT(last.gradients, alone.gradients);
  EXPECT_LT(last.optimizer, alone.optimizer / 2);
  EXPECT_GT(first.saving, layout.size * (8 + 8 + 2 + 4));
  EXPECT_LE(first.saving, layout.size * (8 + 8 + 2 + 4) + (16 << 20));  // the buffer
  EXPECT_EQ(last.saving, 0);
  TrainerOptions library = options;
  library.library_sum = true;
  EXPECT_EQ(train_memory(config, DType::bf16, *device, layout, library, 0, 1, 2).gradients, layout.size * 4 * (2 + 1));
  EXPECT_GT(first.sampling, last.sampling);  // two texts for four ranks
  EXPECT_EQ(train_memory(config, DType::bf16, *device, layout, options, 0, 4, 0).sampling, 0);
}

}  // namespace
}  // namespace kvmesh
