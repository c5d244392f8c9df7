// Losses, gradients and 20 steps of each optimizer against JAX and optax, as the original program configures it (tests/reference/train.py), and AdamW
// against PyTorch's.
#include "model/train/trainer.h"
#include "tests/runtime/test_device.h"
#include "tests/source_dir.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <cmath>
#include <fstream>

namespace kvmesh {
namespace {

using Json = nlohmann::json;

const std::filesystem::path folder = source_dir() / "tests/fixtures/train";

Json read_json(const std::filesystem::path& file) { return Json::parse(std::ifstream(file)); }

/// |a - b| / |b|
double distance(std::span<const float> a, std::span<const float> b) {
  double wrong = 0, all = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    wrong += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    all += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(wrong / all);
}

/// The worst of the checkpoint's tensors.
double worst_distance(const ModelConfig& config, const ParamLayout& layout, const Tensor& vector, const std::filesystem::path& expected) {
  const Tensor other = host_tensor(DType::f32, {layout.size});
  read_vector(SafetensorsFile(expected), "", layout, other);
  const auto a = named_tensors(config, layout, vector, DType::f32), b = named_tensors(config, layout, other, DType::f32);
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, distance(a[i].tensor.span<float>(), b[i].tensor.span<float>()));
  return worst;
}

TrainBatch batch_of(const Json& json) {
  TrainBatch batch;
  for (std::size_t row = 0; row < json["tokens"].size(); ++row) {
    for (std::size_t t = 0; t < json["tokens"][row].size(); ++t) {
      const std::int32_t segment = json["segments"][row][t];
      if (segment == 0) continue;
      if (t == 0 || json["segments"][row][t - 1] != segment) {
        batch.segments.push_back({static_cast<std::int64_t>(t), static_cast<std::int64_t>(t), static_cast<std::int32_t>(row), 0, static_cast<std::int32_t>(batch.ids.size())});
      }
      ++batch.segments.back().count;
      batch.ids.push_back(json["tokens"][row][t]);
      batch.targets.push_back(json["mask"][row][t] != 0 ? json["targets"][row][t].get<std::int32_t>() : -1);
    }
    ++batch.rows;
  }
  return batch;
}

TEST(TrainReference, LossesAndGradients) {
  const auto device = test_device(2);
  for (const std::string model : {"gqa", "window"}) {
    const ModelConfig config = read_config(folder / model / "config.json");
    const ParamLayout layout(config);
    const Tensor vector = host_tensor(DType::f32, {layout.size}), gradient = host_tensor(DType::f32, {layout.size});
    read_parameters(folder / model, config, layout, vector);
    const Json json = read_json(folder / model / "train.json");
    for (const std::string name : {"packed", "joined"}) {
      const TrainBatch batch = batch_of(json[name]);
      std::int64_t targets = 0;
      for (const std::int32_t t : batch.targets) targets += t >= 0;
      Backprop backprop(config, DType::f32, *device, layout, {.rows = batch.rows});
      backprop.set_parameters(up(*device, vector));
      const Tensor there = device->counterpart(gradient);
      const LossSum sum = backprop.loss_and_gradient(batch, 1 / static_cast<float>(targets), there);
      device->copy(there, gradient);
      ASSERT_EQ(sum.tokens, targets);
      EXPECT_NEAR(sum.nats / static_cast<double>(targets), json[name]["loss"].get<double>(), 1e-5);
      EXPECT_LT(worst_distance(config, layout, gradient, folder / model / (name + ".safetensors")), 1e-5) << model << " " << name;
    }
  }
}

TEST(TrainReference, TwentySteps) {
  const auto device = test_device(2);
  const auto ranks = make_self_communicator();
  const ModelConfig config = read_config(folder / "gqa/config.json");
  const ParamLayout layout(config);
  const Json json = read_json(folder / "gqa/train.json");
  for (const auto& [name, run] : json["runs"].items()) {
    if (emulated() && name != "muon-paper") continue;  // embedding and head are AdamW's
    for (const std::int64_t micro : {4, 1}) {
      if (emulated() && micro == 1) continue;
      const OptimizerOptions optimizer{.muon = run["muon"],
                                       .lr = run["peak_lr"],
                                       .floor = run["end_lr"],
                                       .warmup = json["warmup"],
                                       .steps = std::ssize(json["steps"]),
                                       .embed_lr = json["embedding_lr"],
                                       .head_lr = json["unembedding_lr"],
                                       .beta1 = json["b1"],
                                       .beta2 = json["b2"],
                                       .eps = json["eps"],
                                       .momentum = json["b2"],
                                       .weight_decay = run["decay"],
                                       .rule = run["rule"] == "original" ? DecayRule::original : DecayRule::cautious,
                                       .clip = json["clip"]};
      Trainer trainer(config, DType::f32, *device, *ranks, layout, {.optimizer = optimizer, .batch = {4, micro, {0, 4 / micro}}});
      read_parameters(folder / "gqa", config, layout, trainer.parameters());
      trainer.parameters_changed();
      for (std::size_t s = 0; s < json["steps"].size(); ++s) {
        std::vector<TrainBatch> batches;
        for (std::size_t row = 0; row < 4; ++row) {
          if (row % static_cast<std::size_t>(micro) == 0) batches.emplace_back();
          TrainBatch& batch = batches.back();
          const std::vector<std::int32_t> tokens = json["steps"][s][row];
          const auto n = static_cast<std::int32_t>(tokens.size() - 1);
          batch.segments.push_back({0, 0, static_cast<std::int32_t>(batch.rows++), n, static_cast<std::int32_t>(batch.ids.size())});
          batch.ids.insert(batch.ids.end(), tokens.begin(), tokens.end() - 1);
          batch.targets.insert(batch.targets.end(), tokens.begin() + 1, tokens.end());
        }
        const Trainer::Step step = trainer.step(static_cast<std::int64_t>(s), batches);
        EXPECT_NEAR(step.loss, run["losses"][s].get<double>(), 1e-4) << name << ", step " << s;
        EXPECT_NEAR(step.norm / run["norms"][s].get<double>(), 1, 1e-3) << name << ", step " << s;
        EXPECT_NEAR(step.lr, run["lr"][s].get<double>(), 1e-8) << name << ", step " << s;
      }
      EXPECT_LT(worst_distance(config, layout, trainer.parameters(), folder / "gqa" / (name + ".safetensors")), 1e-3) << name;
    }
  }
}

TEST(TrainReference, AdamwOfPyTorch) {
  const auto device = test_device(2);
  const SafetensorsFile file(folder / "rules.safetensors");
  const auto read = [&](const std::string& name) {
    const TensorInfo* const info = file.find(name);
    const Tensor out = host_tensor(DType::f32, {info->shape.numel()});
    file.read(*info, 0, out.numel(), DType::f32, out.raw());
    return out;
  };
  const Json rules = read_json(folder / "rules.json");
  const Tensor gradients = read("adamw.gradients");
  for (const double decay : rules["decay"]) {
    const Tensor p = up(*device, read("adamw.parameter")), m = device->empty(DType::f32, {p.numel()}), v = device->empty(DType::f32, {p.numel()});
    device->train_ops().zero(m);
    device->train_ops().zero(v);
    for (int t = 1; t <= rules["steps"]; ++t) {
      const AdamwStep step{.lr = rules["lr"],
                           .beta1 = rules["b1"],
                           .beta2 = rules["b2"],
                           .eps = rules["eps"],
                           .correction1 = static_cast<float>(1 - std::pow(rules["b1"].get<double>(), t)),
                           .correction2 = static_cast<float>(1 - std::pow(rules["b2"].get<double>(), t)),
                           .decay = {static_cast<float>(rules["lr"].get<double>() * decay), DecayRule::plain}};
      device->train_ops().adamw(step, p, up(*device, gradients.slice((t - 1) * p.numel(), t * p.numel())), m, v);
    }
    EXPECT_LT(distance(down(*device, p).span<float>(), read(fmt::format("adamw.torch.{:.1f}", decay)).span<float>()), 1e-6) << decay;
  }
}

}  // namespace
}  // namespace kvmesh
