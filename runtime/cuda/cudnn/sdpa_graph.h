// An attention pass as cuDNN's operation graph: tensors by their strides, and what is done with them. Made and finalized without a GPU.
#pragma once

#include "runtime/cuda/attention_cudnn.h"

#include <cudnn_frontend.h>

namespace kvmesh::cuda {

/// By which numbers execution gives the graph's tensors.
enum SdpaTensor : std::int64_t {
  sdpa_q = 1, sdpa_k, sdpa_v, sdpa_out, sdpa_statistics, sdpa_dout, sdpa_dq, sdpa_dk, sdpa_dv,
  sdpa_query_lengths, sdpa_key_lengths, sdpa_query_offsets, sdpa_key_offsets, sdpa_dkv_offsets
};

using SdpaGraph = cudnn_frontend::graph::Graph;

/// Nothing is checked yet.
std::unique_ptr<SdpaGraph> sdpa_graph(const SdpaLayout& layout, int compute_capability);
/// Validates it and finalizes its descriptors. Without a handle nobody asks for engines.
cudnn_frontend::error_t finalize(SdpaGraph& graph, cudnnHandle_t handle);
/// Asks for engines; good: there is one. Of gradients, none whose bits may be others the next time.
cudnn_frontend::error_t find_engines(SdpaGraph& graph, SdpaPass pass);

/// Whether cuDNN says that it has no way to do this; a want of memory, a driver or a device that fails are other errors.
bool says_unsupported(cudnn_frontend::error_t error);

/// Loads libcudnn, once; why it cannot be, or nothing.
const std::string& load_cudnn();

}  // namespace kvmesh::cuda
