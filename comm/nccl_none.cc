// What a build without CUDA says of NCCL.
#include "comm/nccl.h"

namespace kvmesh {

GpuChoice choose_gpu(ProcessGroup&, bool) { return {}; }

std::unique_ptr<Communicator> make_nccl_communicator(ProcessGroup&, std::shared_ptr<Deadline>, void*, bool) {
  fail(Fault::usage, "--device cuda: this build has no NCCL");
}

std::string nccl_version() { return "not compiled in"; }

}  // namespace kvmesh
