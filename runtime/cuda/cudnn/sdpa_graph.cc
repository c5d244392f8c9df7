// Tensors and the one operation, scaled-dot-product attention or its gradients.
#include "runtime/cuda/cudnn/sdpa_graph.h"

#include <fmt/format.h>

#include <dlfcn.h>

#include <cmath>
#include <cstdlib>

namespace cudnn_frontend {

void* cudnn_dlhandle = nullptr;  // where the front end looks cuDNN's functions up

}  // namespace cudnn_frontend

namespace kvmesh::cuda {
namespace {

namespace fe = cudnn_frontend;
using fe::graph::Tensor_attributes;

std::vector<std::int64_t> vector_of(const std::int64_t (&strides)[4]) { return {strides, strides + 4}; }

}  // namespace

// Loaded when it is asked for, not linked: the program starts where cuDNN is not.
const std::string& load_cudnn() {
  static const std::string why = [] {
    const std::string name = fmt::format("libcudnn.so.{}", CUDNN_MAJOR);
    fe::cudnn_dlhandle = ::dlopen(name.c_str(), RTLD_NOW);
    if (!fe::cudnn_dlhandle) return std::string(::dlerror());
    // The front end would take whichever runtime it finds first; ours is loaded already.
    ::setenv("CUDNN_FRONTEND_CUDART_LIB_NAME", fmt::format("libcudart.so.{}", CUDART_VERSION / 1000).c_str(), 0);
    return std::string();
  }();
  return why;
}

std::unique_ptr<SdpaGraph> sdpa_graph(const SdpaLayout& layout, int compute_capability) {
  using Tensor = std::shared_ptr<Tensor_attributes>;
  using Sizes = std::vector<std::int64_t>;
  const SdpaShape& s = layout.shape;
  auto graph = std::make_unique<SdpaGraph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16).set_intermediate_data_type(fe::DataType_t::FLOAT).set_compute_data_type(fe::DataType_t::FLOAT);
  graph->set_sm_version(compute_capability);
  const auto numbers = [&](const char* name, SdpaTensor uid, std::int64_t count) {
    return graph->tensor(Tensor_attributes().set_name(name).set_uid(uid).set_dim({count, 1, 1, 1}).set_stride({1, 1, 1, 1}).set_data_type(fe::DataType_t::INT32));
  };
  const auto offsets = [&](const char* name, SdpaTensor uid) { return s.ragged ? numbers(name, uid, s.rows + 1) : Tensor(); };
  const Tensor query_offsets = offsets("query offsets", sdpa_query_offsets), key_offsets = offsets("key offsets", sdpa_key_offsets);
  const Sizes q_dims = {s.rows, s.heads, s.queries, s.head_dim}, q_strides = vector_of(layout.q_strides), kv_strides = vector_of(layout.kv_strides);
  const Sizes kv_dims = {s.rows, s.kv_heads, s.pass == SdpaPass::forward ? s.size : s.queries, s.head_dim};
  const auto input = [&](const char* name, SdpaTensor uid, const Sizes& dims, const Sizes& strides, const Tensor& begins) {
    return graph->tensor(Tensor_attributes().set_name(name).set_uid(uid).set_dim(dims).set_stride(strides).set_ragged_offset(begins));
  };
  const auto output = [](const Tensor& t, SdpaTensor uid, const Sizes& dims, const Sizes& strides, const Tensor& begins) {
    t->set_output(true).set_uid(uid).set_dim(dims).set_stride(strides).set_ragged_offset(begins);
  };
  const auto q = input("q", sdpa_q, q_dims, q_strides, query_offsets);
  const auto k = input("k", sdpa_k, kv_dims, kv_strides, key_offsets), v = input("v", sdpa_v, kv_dims, kv_strides, key_offsets);
  const auto describe = [&](auto& attention) {
    attention.set_name("attention").set_attn_scale(1.0f / std::sqrt(static_cast<float>(s.head_dim)));
    if (s.ragged) attention.set_padding_mask(true).set_seq_len_q(numbers("query lengths", sdpa_query_lengths, s.rows)).set_seq_len_kv(numbers("key lengths", sdpa_key_lengths, s.rows));
    if (s.queries == 1) return;
    // A row's last query sees its last key; in training it has as many of them.
    attention.set_diagonal_alignment(s.pass == SdpaPass::forward ? fe::DiagonalAlignment_t::BOTTOM_RIGHT : fe::DiagonalAlignment_t::TOP_LEFT).set_diagonal_band_right_bound(0);
    if (s.window >= 0) attention.set_diagonal_band_left_bound(static_cast<int>(s.window + 1));  // keys j > i - bound
  };
  const Sizes of_queries = {s.rows, s.heads, s.queries, 1}, of_queries_strides = {s.heads * s.queries, s.queries, 1, 1};
  if (s.pass != SdpaPass::backward) {
    fe::graph::SDPA_attributes attention;
    describe(attention);
    attention.set_generate_stats(s.pass == SdpaPass::statistics);
    const auto [out, statistics] = graph->sdpa(q, k, v, attention);
    output(out, sdpa_out, q_dims, q_strides, query_offsets);
    if (statistics) {
      output(statistics, sdpa_statistics, of_queries, of_queries_strides, nullptr);
      statistics->set_data_type(fe::DataType_t::FLOAT);
    }
    return graph;
  }
  fe::graph::SDPA_backward_attributes attention;
  describe(attention);
  attention.set_deterministic_algorithm(true);
  const auto statistics = input("statistics", sdpa_statistics, of_queries, of_queries_strides, nullptr);
  statistics->set_data_type(fe::DataType_t::FLOAT);
  const auto out = input("out", sdpa_out, q_dims, q_strides, query_offsets), dout = input("dout", sdpa_dout, q_dims, q_strides, query_offsets);
  const auto [dq, dk, dv] = graph->sdpa_backward(q, k, v, out, dout, statistics, attention);
  const Sizes dkv_strides = vector_of(layout.dkv_strides);
  const Tensor dkv_offsets = offsets("offsets of keys' gradients", sdpa_dkv_offsets);
  output(dq, sdpa_dq, q_dims, q_strides, query_offsets);
  output(dk, sdpa_dk, kv_dims, dkv_strides, dkv_offsets);
  output(dv, sdpa_dv, kv_dims, dkv_strides, dkv_offsets);
  return graph;
}

fe::error_t finalize(SdpaGraph& graph, cudnnHandle_t handle) {
  auto status = graph.validate();
  return status.is_bad() ? status : graph.build_operation_graph(handle);
}

fe::error_t find_engines(SdpaGraph& graph, SdpaPass pass) {
  auto status = graph.create_execution_plans({fe::HeurMode_t::A, fe::HeurMode_t::FALLBACK});
  if (status.is_bad()) return status;
  if (pass == SdpaPass::backward) graph.deselect_numeric_notes({fe::NumericalNote_t::NONDETERMINISTIC});
  return graph.check_support();
}

// The front end's codes say in which step it failed; of what cuDNN itself answered there, only the message tells.
bool says_unsupported(fe::error_t error) {
  using enum fe::error_code_t;
  const auto code = error.get_code();
  const std::string text = error.get_message();
  const auto named = [&](const char* word) { return text.find(word) != std::string::npos; };
  return (code == GRAPH_NOT_SUPPORTED || code == HEURISTIC_QUERY_FAILED || code == GRAPH_EXECUTION_PLAN_CREATION_FAILED) && !named("CUDNN_STATUS_NOT_INITIALIZED") &&
         !named("CUDNN_STATUS_INTERNAL_ERROR") && !named("CUDNN_STATUS_ALLOC_FAILED") && !named("CUDNN_STATUS_EXECUTION_FAILED");
}

}  // namespace kvmesh::cuda
