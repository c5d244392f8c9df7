// Decode passes as CUDA graphs: a step of a small model is some hundred short kernels, and launching them one by one takes the host longer than the
// kernels take. A pass's ids and runs lie in memory that is filled anew for each, so that a record serves every pass of as many tokens.
#include "runtime/cuda/cuda_device.h"

#include <algorithm>

namespace kvmesh::cuda {

void CudaDevice::run(const Pass& pass, const Work& work, const std::function<void()>& body) {
  const bool decode = std::all_of(pass.segments.begin(), pass.segments.end(), [](const Segment& s) { return s.count == 1; });
  if (!decode || pass.segments.empty()) return body();
  if (graphs_.size() >= most_graphs) graphs_.clear();
  const GraphKey key{work, pass.ids.numel(), pass.wanted.numel(), leaves_rows(pass.segments, work.slots)};
  const auto found = graphs_.find(key);
  if (found == graphs_.end()) {  // the first time, memory may still have to grow
    body();
    graphs_.try_emplace(key);
    return;
  }
  if (!found->second.exec) record(found->second, body);
  must(cudaGraphLaunch(found->second.exec, stream_->handle));
}

void CudaDevice::record(Graph& graph, const std::function<void()>& body) {
  cudaGraph_t recorded = nullptr;
  must(cudaStreamBeginCapture(stream_->handle, cudaStreamCaptureModeThreadLocal));
  try {
    body();
  } catch (...) {
    if (cudaStreamEndCapture(stream_->handle, &recorded) == cudaSuccess) cudaGraphDestroy(recorded);
    throw;
  }
  must(cudaStreamEndCapture(stream_->handle, &recorded));
  const cudaError_t made = cudaGraphInstantiate(&graph.exec, recorded, 0);
  cudaGraphDestroy(recorded);
  must(made);
}

}  // namespace kvmesh::cuda
