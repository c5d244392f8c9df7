// What cuDNN is told of the ring, without a GPU: it accepts every layout that the device gives it and has an engine for it on every architecture, and it
// refuses wrong ones in words. Engines want a libcuda to load; the toolkit's stub will do.
#include "runtime/cuda/cudnn/sdpa_graph.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <dlfcn.h>

#include <tuple>
#include <vector>

namespace kvmesh::cuda {
namespace {

std::vector<SdpaShape> shapes() {
  std::vector<SdpaShape> all;
  for (const std::int64_t head_dim : {64, 96, 128}) {
    for (const std::int64_t kv_heads : {8, 4, 1}) {
      for (const auto& [rows, queries] : {std::pair(1, 1), {256, 1}, {1, 512}, {16, 64}}) {
        for (const std::int64_t window : {-1, 0, 100}) {
          if (queries > 1 || window < 0) all.push_back({rows, queries, 8, kv_heads, 2048, head_dim, window});
        }
      }
    }
  }
  return all;
}

/// Both passes of micro-batches: rows that are filled, and documents or rows of any length.
std::vector<SdpaShape> training_shapes() {
  std::vector<SdpaShape> all;
  for (const std::int64_t head_dim : {64, 96, 128}) {
    for (const std::int64_t kv_heads : {8, 4, 1}) {
      for (const auto& [rows, tokens, ragged] : {std::tuple(8, 2048, false), {3, 1000, false}, {16, 512, true}, {1, 2048, true}}) {
        for (const std::int64_t window : {-1, 0, 100}) {
          for (const SdpaPass pass : {SdpaPass::statistics, SdpaPass::backward}) all.push_back({rows, tokens, 8, kv_heads, 2048, head_dim, window, pass, ragged});
        }
      }
    }
  }
  return all;
}

std::string to_string(const SdpaShape& s) {
  return fmt::format("pass {}, {} rows of {} {} queries, {} heads over {}, {} slots, head_dim {}, window {}", static_cast<int>(s.pass), s.rows, s.ragged ? "at most" : "just", s.queries, s.heads,
                     s.kv_heads, s.size, s.head_dim, s.window);
}

cudnn_frontend::error_t finalized(const SdpaLayout& layout) { return finalize(*sdpa_graph(layout, 90), nullptr); }

/// A GPU as cuDNN describes one to itself.
std::vector<std::uint8_t> gpu(int compute_capability, int shared_bytes) {
  const std::string json = fmt::format(
      R"({{"deviceVer":{},"driverVer":13000,"cudaDeviceId":0,"totalGlobalMem":85000000000,"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],)"
      R"("regsPerBlock":65536,"multiProcessorCount":132,"warpSize":32,"maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":{},"reservedSharedMemoryPerBlock":1024,)"
      R"("maxRegistersPerSM":65536,"maxCtasPerSM":32,"maxThreadsPerBlock":1024,"maxThreadsPerSM":2048,"pciDeviceId":0,"isTccDriver":0,"supportCoopLaunch":1,)"
      R"("smClockRateKHz":1980000,"memClockRateKHz":2619000,"l2CacheSize":52428800,"deviceName":"GPU"}})",
      10 * compute_capability, shared_bytes);
  return {json.begin(), json.end()};
}

class SdpaGraphs : public testing::Test {
  void SetUp() override {
    if (!load_cudnn().empty()) GTEST_SKIP() << load_cudnn();
  }
};

TEST_F(SdpaGraphs, EveryLayoutIsAccepted) {
  for (const std::vector<SdpaShape>& all : {shapes(), training_shapes()}) {
    for (const SdpaShape& shape : all) {
      auto status = finalized(layout_of(shape));
      EXPECT_TRUE(status.is_good()) << to_string(shape) << ": " << status.get_message();
    }
  }
}

/// Whether cuDNN has an engine on such a GPU; else why not.
std::string refusal(const SdpaShape& shape, int compute_capability, int shared_bytes) {
  const auto graph = sdpa_graph(layout_of(shape), compute_capability);
  const auto device = std::make_shared<cudnn_frontend::DeviceProperties>();
  auto status = device->deserialize(gpu(compute_capability, shared_bytes));
  EXPECT_TRUE(status.is_good()) << status.get_message();
  graph->set_device_properties(device);
  status = finalize(*graph, nullptr);
  if (status.is_good()) status = find_engines(*graph, shape.pass);
  EXPECT_TRUE(status.is_good() || says_unsupported(status)) << status.get_message();
  return status.is_good() ? "" : status.get_message();
}

TEST_F(SdpaGraphs, EveryArchitectureHasAnEngine) {
  if (!::dlopen("libcuda.so.1", RTLD_NOW)) GTEST_SKIP() << "no libcuda.so.1, not even a stub";
  for (const auto& [compute_capability, shared_bytes] : {std::pair(80, 166912), {90, 232448}, {100, 232448}, {120, 101376}}) {
    for (const std::vector<SdpaShape>& all : {shapes(), training_shapes()}) {
      for (const SdpaShape& shape : all) {
        if (shape.kv_heads == 1 && shape.head_dim != 64) continue;  // as the others, and time is short
        // With the same bits each time: gradients of rows that begin anywhere are for two of the architectures only.
        const bool refused = shape.pass == SdpaPass::backward && shape.ragged && (compute_capability == 80 || compute_capability == 120);
        const std::string why = refusal(shape, compute_capability, shared_bytes);
        EXPECT_EQ(why.find("Deterministic") != std::string::npos, refused) << "sm_" << compute_capability << ", " << to_string(shape) << ": " << why;
        EXPECT_EQ(why.empty(), !refused) << "sm_" << compute_capability << ", " << to_string(shape) << ": " << why;
      }
    }
  }
}

TEST_F(SdpaGraphs, LargeHeadsHaveGradientsOnOneArchitecture) {
  if (!::dlopen("libcuda.so.1", RTLD_NOW)) GTEST_SKIP() << "no libcuda.so.1, not even a stub";
  for (const bool ragged : {false, true}) {
    const SdpaShape shape{8, 512, 8, 4, 512, 256, -1, SdpaPass::backward, ragged};
    EXPECT_EQ(refusal(shape, 90, 232448), "");
    for (const int compute_capability : {80, 100, 120}) EXPECT_NE(refusal(shape, compute_capability, 101376).find("hidden_dim"), std::string::npos) << compute_capability;
  }
}

TEST_F(SdpaGraphs, WrongLayoutsAreRefusedInWords) {
  const SdpaShape good{4, 64, 8, 4, 2048, 96, -1};
  ASSERT_TRUE(finalized(layout_of(good)).is_good());
  SdpaLayout gaps = layout_of(good), q_gaps = layout_of(good), odd = layout_of(good);
  gaps.kv_strides[3] = 2;
  q_gaps.q_strides[3] = 2;
  odd.kv_strides[2] = 97;
  SdpaShape narrow = good, heads = good;
  narrow.head_dim = 20;
  heads.kv_heads = 3;
  for (const SdpaLayout& layout : {gaps, q_gaps, odd, layout_of(narrow), layout_of(heads)}) {
    auto status = finalized(layout);
    EXPECT_TRUE(status.is_bad());
    EXPECT_NE(status.get_message(), "");
  }
  EXPECT_TRUE(says_unsupported(finalized(layout_of(narrow)))) << "our own attention does it";
  for (const bool ragged : {false, true}) {
    const SdpaShape training{4, 64, 8, 4, 2048, 96, -1, SdpaPass::backward, ragged};
    ASSERT_TRUE(finalized(layout_of(training)).is_good());
    SdpaLayout dkv_gaps = layout_of(training), dkv_odd = layout_of(training), key_gaps = layout_of(training);
    dkv_gaps.dkv_strides[3] = 2;
    dkv_odd.dkv_strides[2] += 1;
    key_gaps.kv_strides[3] = 2;
    SdpaShape one = training, three = training, thin = training;
    one.queries = 1;
    three.kv_heads = 3;
    thin.head_dim = 20;
    for (const SdpaLayout& layout : {dkv_gaps, dkv_odd, key_gaps, layout_of(one), layout_of(three), layout_of(thin)}) {
      auto status = finalized(layout);
      EXPECT_TRUE(status.is_bad()) << to_string(layout.shape);
      EXPECT_NE(status.get_message(), "");
    }
  }
}

TEST(SdpaErrors, OnlyAWantOfSupportIsOne) {
  using enum cudnn_frontend::error_code_t;
  EXPECT_TRUE(says_unsupported({GRAPH_NOT_SUPPORTED, "head_dim"}));
  EXPECT_TRUE(says_unsupported({HEURISTIC_QUERY_FAILED, "No valid engine configs"}));
  EXPECT_TRUE(says_unsupported({GRAPH_EXECUTION_PLAN_CREATION_FAILED, "Plan at index 0: cudnn_status: CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH"}));
  EXPECT_FALSE(says_unsupported({GRAPH_EXECUTION_PLAN_CREATION_FAILED, "Plan at index 0: cudnn_status: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"}));
  EXPECT_FALSE(says_unsupported({GRAPH_EXECUTION_PLAN_CREATION_FAILED, "Plan at index 0: cudnn_status: CUDNN_STATUS_NOT_SUPPORTED\nPlan at index 1: cudnn_status: CUDNN_STATUS_ALLOC_FAILED"}));
  for (const auto code : {CUDA_API_FAILED, CUDNN_BACKEND_API_FAILED, HANDLE_ERROR, INVALID_CUDA_DEVICE, NVRTC_COMPILATION_FAILED}) EXPECT_FALSE(says_unsupported({code, "it"}));
}

}  // namespace
}  // namespace kvmesh::cuda
