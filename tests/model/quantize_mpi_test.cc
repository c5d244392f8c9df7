// Integers made when a checkpoint is loaded, on 1 to 4 ranks: of the numbers as the files have them, not of what --dtype would round them to.
#include "model/checkpoint.h"

#include "../comm/mpi_main.h"
#include "scratch.h"
#include "tests/runtime/test_device.h"
#include "twin.h"

#include <cstring>

namespace kvmesh {
namespace {

using testing::group;

class Quantized : public ::testing::Test {
 protected:
  ModelConfig config_ = [] {
    ModelConfig c;
    c.seqlen = 16;
    c.vocab_size = 61;
    c.d_emb = 36;
    c.num_layers = 2;
    c.q_heads = 6;
    c.kv_heads = 2;
    return c;
  }();
  const test::Weights weights_ = test::random_weights(config_, DType::f32, 3);
  const test::Scratch scratch_;  // each rank's own
  const std::filesystem::path folder_ = scratch_.path() / "checkpoint";
  const std::unique_ptr<Device> device_ = make_device("cpu", {.threads = 1});

  void SetUp() override {
    std::vector<NamedTensor> tensors;
    for (const ParamSpec& spec : param_specs(config_)) {
      tensors.push_back({spec.name, Tensor(nullptr, const_cast<float*>(weights_.at(spec.name).data()), DType::f32, spec.shape)});
    }
    save_checkpoint(folder_, config_, tensors);
  }
};

bool same(const Weight& a, const Weight& b) {
  return a.quantize == b.quantize && a.data.bytes() == b.data.bytes() && std::memcmp(a.data.raw(), b.data.raw(), a.data.bytes()) == 0;
}

TEST_F(Quantized, MatricesAreAndTheEmbeddingIsNot) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    LoadOptions options;
    options.quantize = Quantize::int8;
    const GptWeights loaded = load_weights(folder_, config_, dtype, *device_, *group, options), expected = test::pack(config_, dtype, weights_, *device_, Quantize::int8);
    EXPECT_EQ(std::memcmp(loaded.embed.raw(), expected.embed.raw(), expected.embed.bytes()), 0);
    EXPECT_EQ(loaded.embed.dtype(), dtype);
    for (std::size_t b = 0; b < loaded.blocks.size(); ++b) {
      const auto &x = loaded.blocks[b], &y = expected.blocks[b];
      EXPECT_TRUE(same(x.qkv, y.qkv) && same(x.wo, y.wo) && same(x.fc1, y.fc1) && same(x.fc2, y.fc2)) << name_of(dtype) << ", block " << b;
    }
    EXPECT_TRUE(same(loaded.lm_head, expected.lm_head)) << name_of(dtype);
    EXPECT_LT(weights_bytes(config_, dtype, *device_, Quantize::int8), weights_bytes(config_, dtype, *device_));
  }
}

}  // namespace
}  // namespace kvmesh
