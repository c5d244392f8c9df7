// Training on 1 to 4 ranks gives the bits that one rank alone gives.
#include "tests/comm/mpi_main.h"

#include "model/train/train_state.h"
#include "model/train/trainer.h"
#include "tests/runtime/test_device.h"

#include <cstring>
#include <limits>
#include <random>
#include <utility>

namespace kvmesh {
namespace {

using testing::group;

ModelConfig tiny(std::int64_t vocab) {
  return parse_config(fmt::format(R"({{"seqlen":12,"vocab_size":{},"d_emb":16,"num_layers":1,"q_heads":2,"kv_heads":1,"dtype":"float32"}})", vocab), "test");
}

/// Micro-batch `leaf` of a step: a row of two documents.
TrainBatch batch_of(const ModelConfig& c, std::int64_t step, std::int64_t leaf) {
  std::mt19937 random(static_cast<unsigned>(100 * step + leaf));
  TrainBatch batch{.ids = {}, .targets = {}, .segments = {{0, 0, 0, 5, 0}, {5, 5, 0, 6, 5}}, .rows = 1};
  for (int i = 0; i < 11; ++i) {
    batch.ids.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(c.vocab_size)));
    batch.targets.push_back(i == 4 ? -1 : static_cast<std::int32_t>(random() % static_cast<unsigned>(c.vocab_size)));
  }
  return batch;
}

struct Trained {
  std::vector<float> parameters, state;
  std::vector<double> losses, norms;
  bool operator==(const Trained&) const = default;
};

Trained train(Communicator& ranks, DType dtype, bool muon, std::int64_t vocab) {
  constexpr std::int64_t leaves = 5;
  const auto device = test_device();
  const ModelConfig config = tiny(vocab);
  const ParamLayout layout(config);
  const TrainerOptions options{.optimizer = {.muon = muon, .steps = 3}, .batch = {leaves, 1, split(leaves, ranks.size(), ranks.rank())}};
  Trainer trainer(config, dtype, *device, ranks, layout, options);
  initialize(config, layout, Init::copying, 7, trainer.parameters());
  trainer.parameters_changed();
  Trained result;
  for (std::int64_t step = 0; step < 3; ++step) {
    std::vector<TrainBatch> batches;
    for (std::int64_t leaf = options.batch.leaves.begin; leaf < options.batch.leaves.end; ++leaf) batches.push_back(batch_of(config, step, leaf));
    const Trainer::Step done = trainer.step(step, batches);
    result.losses.push_back(done.loss);
    result.norms.push_back(done.norm);
  }
  const std::span<const float> all = trainer.parameters().span<float>();
  result.parameters.assign(all.begin(), all.end());
  const Tensor state = host_tensor(DType::f32, {layout.size});
  collect_state(ranks, *device, trainer.optimizer().owners(), trainer.optimizer().m(), state);
  ranks.broadcast(state, 0);
  result.state.assign(state.data<float>(), state.data<float>() + layout.size);
  return result;
}

TEST(Trainer, TheNumberOfRanksChangesNoBit) {
  const auto self = make_self_communicator();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const bool muon : {false, true}) {
      const Trained alone = train(*self, dtype, muon, 40), together = train(group->world(), dtype, muon, 40);
      EXPECT_TRUE(alone == together) << name_of(dtype) << (muon ? " muon" : " adamw");
      EXPECT_TRUE(std::isfinite(alone.losses.back()) && alone.losses.front() != alone.losses.back());
      EXPECT_NE(alone.parameters, std::vector<float>(alone.parameters.size(), 0.0f));
    }
  }
}

/// Embedding and head of four blocks of squares each and a bit more: ranks own several, and a matrix has several owners.
TEST(Trainer, ACutWithinAMatrixChangesNoBit) {
  constexpr std::int64_t vocab = 4200;
  const ParamLayout layout(tiny(vocab));
  const Owners owners = divide(layout, {.muon = false, .steps = 3}, 4);
  for (const std::size_t third : {0, 2}) {
    for (int r = 0; r < 4; ++r) ASSERT_GE(owners[static_cast<std::size_t>(r)][third].size(), TrainOps::square_block) << "rank " << r;
  }
  const auto self = make_self_communicator();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    if (emulated() && dtype == DType::bf16) continue;
    const Trained alone = train(*self, dtype, false, vocab), together = train(group->world(), dtype, false, vocab);
    EXPECT_TRUE(alone == together) << name_of(dtype);
    EXPECT_NE(alone.losses.front(), alone.losses.back());
  }
}

TEST(Trainer, ParametersThatAreNotFiniteAreNamed) {
  const auto device = test_device();
  const ModelConfig config = tiny(40);
  const ParamLayout layout(config);
  Communicator& ranks = group->world();
  Trainer trainer(config, DType::bf16, *device, ranks, layout, {.optimizer = {.steps = 3}, .batch = {4, 1, split(4, ranks.size(), ranks.rank())}});
  initialize(config, layout, Init::copying, 7, trainer.parameters());
  trainer.parameters_changed();
  EXPECT_NO_THROW(trainer.check_finite("the weight"));
  for (const Matrix& m : layout.matrices) {
    for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      float& element = trainer.parameters().data<float>()[m.offset + m.size() - 1];
      const float good = std::exchange(element, bad);
      trainer.parameters_changed();
      try {
        trainer.check_finite("step 3: the new weight");
        ADD_FAILURE() << "no error with " << bad << " in " << m.name;
      } catch (const NotFinite& e) {
        EXPECT_EQ(e.what(), fmt::format("step 3: the new weight of {} is not finite", m.name));
      }
      element = good;
    }
  }
}

}  // namespace
}  // namespace kvmesh
