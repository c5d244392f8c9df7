// The communicator in device memory, on NCCL. A build without CUDA has nccl_none.cc instead, in which asking for it is an error.
#pragma once

#include "comm/communicator.h"
#include "comm/deadline.h"
#include "comm/gpus.h"
#include "comm/process_group.h"

#include <memory>
#include <string>

namespace kvmesh {

/// Collective over the ranks of this host; as choose_gpus. The first, where none of these ranks sees any or the build has no CUDA: whoever asks
/// for it will say so.
GpuChoice choose_gpu(ProcessGroup& group, bool share);

/// Collective over all ranks, each on the current CUDA device. Tensors lie in that device's memory; collectives take their turn on `stream` (a
/// cudaStream_t): before them it does what was enqueued earlier, and results are there for what is enqueued later. The calling thread
/// looks on until this rank's part is done, within `deadline`, so that a rank which does not come is named and nothing hangs: the
/// communicator is then aborted, which ends what waits on the device. A rank whose own device is still busy with earlier work does not count as waiting.
/// While `stream` is capturing, collectives are recorded; whoever launches the graph calls wait() afterwards. `group` must outlive it. `shares_gpu`: as
/// choose_gpu says; if it is so for any rank, NCCL is made to take each for a host of its own, which is for trying, not for speed.
std::unique_ptr<Communicator> make_nccl_communicator(ProcessGroup& group, std::shared_ptr<Deadline> deadline, void* stream, bool shares_gpu);

/// "2.28.9", of the library that is loaded; "not compiled in".
std::string nccl_version();

}  // namespace kvmesh
