// What kvmesh bench says of the cost of equal bits adds up. Nothing here looks at how fast anything is.
#include "launch/bench_parts.h"

#include "tests/model/twin.h"
#include "tests/runtime/test_device.h"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

ModelConfig small(std::int64_t layers) {
  ModelConfig c;
  c.seqlen = 32;
  c.vocab_size = 40;
  c.d_emb = 16;
  c.num_layers = layers;
  c.q_heads = 2;
  c.kv_heads = 1;
  return c;
}

/// Of a decode step of 3 rows, and a chunk of prompts of 5 tokens.
Json products_of(const ModelConfig& c, Quantize quantize = Quantize::none) {
  const auto device = test_device();
  const Gpt gpt(c, DType::bf16, test::pack(c, DType::bf16, test::random_weights(c, DType::bf16, 1), *device, quantize), *device);
  BenchOptions options;
  options.prompt_len = 5;
  return bench_products(gpt, options, 3);
}

TEST(BenchProducts, every_product_of_a_pass_is_there) {
  for (const std::int64_t layers : {1, 2}) {
    const Json out = products_of(small(layers));
    if (!on_cuda()) {
      EXPECT_TRUE(out.is_null()) << "the CPU has no library to be compared with";
      return;
    }
    std::map<std::string, double> ours, theirs;
    std::map<std::string, std::vector<std::string>> names;
    for (const Json& p : out["products"]) {
      const std::string phase = p["phase"];
      const double calls = p["calls"], seconds = p["seconds"], library = p["library_seconds"];
      EXPECT_GT(seconds, 0);
      EXPECT_GT(library, 0);
      EXPECT_DOUBLE_EQ(p["ratio"], seconds / library);
      EXPECT_EQ(calls, p["name"] == "logits" ? 1 : static_cast<double>(layers));
      EXPECT_EQ(p["rows"], phase == "decode" || p["name"] == "logits" ? 3 : 15) << layers << " layers, " << p["name"];
      ours[phase] += calls * seconds, theirs[phase] += calls * library;
      names[phase].push_back(p["name"]);
    }
    for (const char* phase : {"decode", "prefill"}) {
      EXPECT_EQ(names[phase], (std::vector<std::string>{"qkv", "wo", "fc1", "fc2", "logits"}));
      EXPECT_DOUBLE_EQ(out[std::string(phase) + "_ratio"], ours[phase] / theirs[phase]);
    }
  }
}

TEST(BenchProducts, int8_is_not_compared_with_bfloat16) { EXPECT_TRUE(products_of(small(1), Quantize::int8).is_null()); }

}  // namespace
}  // namespace kvmesh
