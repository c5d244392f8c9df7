// What a test can do to the stream and the NCCL that are played over MPI.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <string>
#include <vector>

namespace fake_nccl {

/// Lives as long as the program.
cudaStream_t make_stream();
/// The device is busy on `stream` for so long from its turn on.
void keep_busy(cudaStream_t stream, std::chrono::duration<double> time);
/// What is enqueued meanwhile is done by replay() alone.
void capture(cudaStream_t stream, bool on);
void replay(cudaStream_t stream);
/// Every communicator of this process has this error from now on; ncclSuccess: none.
void set_async_error(ncclResult_t error);
int communicators();  ///< made, and neither destroyed nor aborted
int aborted();        ///< how many so far
int collectives();    ///< asked for so far, a group counting as one
void set_gpus(std::vector<std::string> bus_ids);

}  // namespace fake_nccl
