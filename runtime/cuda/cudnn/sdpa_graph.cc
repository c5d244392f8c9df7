// Tensors and the one operation, scaled-dot-product attention.
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
  const SdpaShape& s = layout.shape;
  auto graph = std::make_unique<SdpaGraph>();
  graph->set_io_data_type(fe::DataType_t::BFLOAT16).set_intermediate_data_type(fe::DataType_t::FLOAT).set_compute_data_type(fe::DataType_t::FLOAT);
  graph->set_sm_version(compute_capability);
  const auto tensor = [&](const char* name, SdpaTensor uid, std::vector<std::int64_t> dims, std::vector<std::int64_t> strides) {
    return graph->tensor(Tensor_attributes().set_name(name).set_uid(uid).set_dim(dims).set_stride(strides));
  };
  const auto numbers = [&](const char* name, SdpaTensor uid, std::int64_t count) {
    return graph->tensor(Tensor_attributes().set_name(name).set_uid(uid).set_dim({count, 1, 1, 1}).set_stride({1, 1, 1, 1}).set_data_type(fe::DataType_t::INT32));
  };
  const auto query_offsets = numbers("query offsets", sdpa_query_offsets, s.rows + 1), key_offsets = numbers("key offsets", sdpa_key_offsets, s.rows + 1);
  const std::vector<std::int64_t> q_dims = {s.rows, s.heads, s.queries, s.head_dim}, kv_dims = {s.rows, s.kv_heads, s.size, s.head_dim};
  const auto q = tensor("q", sdpa_q, q_dims, vector_of(layout.q_strides));
  const auto k = tensor("k", sdpa_k, kv_dims, vector_of(layout.kv_strides)), v = tensor("v", sdpa_v, kv_dims, vector_of(layout.kv_strides));
  q->set_ragged_offset(query_offsets);
  k->set_ragged_offset(key_offsets);
  v->set_ragged_offset(key_offsets);
  fe::graph::SDPA_attributes attention;
  attention.set_name("attention").set_generate_stats(false).set_attn_scale(1.0f / std::sqrt(static_cast<float>(s.head_dim)));
  attention.set_padding_mask(true).set_seq_len_q(numbers("query lengths", sdpa_query_lengths, s.rows)).set_seq_len_kv(numbers("key lengths", sdpa_key_lengths, s.rows));
  if (s.queries > 1) {  // a row's last query sees its last key
    attention.set_diagonal_alignment(fe::DiagonalAlignment_t::BOTTOM_RIGHT).set_diagonal_band_right_bound(0);
    if (s.window >= 0) attention.set_diagonal_band_left_bound(static_cast<int>(s.window + 1));  // keys j > i - bound
  }
  const auto out = graph->sdpa(q, k, v, attention)[0];
  out->set_output(true).set_uid(sdpa_out).set_dim(q_dims).set_stride(vector_of(layout.q_strides)).set_ragged_offset(query_offsets);
  return graph;
}

fe::error_t finalize(SdpaGraph& graph, cudnnHandle_t handle) {
  auto status = graph.validate();
  return status.is_bad() ? status : graph.build_operation_graph(handle);
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
