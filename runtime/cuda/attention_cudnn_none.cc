// Where cuDNN is not compiled in.
#include "runtime/cuda/attention_cudnn.h"

#include "runtime/check.h"

namespace kvmesh::cuda {

struct CudnnAttention::Library {};
struct CudnnAttention::Plan {};

std::string cudnn_versions() { return "not compiled in"; }

CudnnAttention::CudnnAttention(cudaStream_t, int) { fail(Fault::usage, "--attention cudnn: this build has no cuDNN"); }
CudnnAttention::~CudnnAttention() = default;

// Nobody has an object to call these on.
std::int64_t CudnnAttention::most_elements() { return 0; }
std::size_t CudnnAttention::most_workspace() { return 0; }
const std::string& CudnnAttention::refusal(const SdpaShape&) { return name_; }
std::size_t CudnnAttention::workspace_bytes(const SdpaShape&) const { return 0; }
void CudnnAttention::enqueue(const SdpaShape&, const SdpaMemory&, void*) const {}

}  // namespace kvmesh::cuda
