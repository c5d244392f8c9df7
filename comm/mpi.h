// The communicator in host memory. MPI's own header stays in the .cc files of this folder.
#pragma once

#include "comm/communicator.h"
#include "comm/deadline.h"

#include <cstdint>
#include <memory>

namespace kvmesh {

/// Which ranks a communicator is between, in their order: all, those of a host, or those that say the same `color`.
struct Ranks {
  enum Which { all, of_this_host, of_color } which = all;
  int color = 0;

  Ranks(Which w, int c = 0) : which(w), color(c) {}
};

/// Between MPI_Init and MPI_Finalize; collective over all ranks of the job, as MPI builds a communicator of its own for it. Tensors
/// lie in host memory and travel as bytes: all hosts have the same byte order. What is larger than `piece` bytes (1 … 2³¹ - 1) goes
/// in pieces, and the deadline holds for each of them. One thread at a time: the one that started MPI, or one that polls a Pending while that one computes.
std::unique_ptr<Communicator> make_mpi_communicator(Ranks ranks, std::shared_ptr<Deadline> deadline, std::int64_t piece = std::int64_t{64} << 20);

/// Throws Error(Fault::rank) in MPI's own words unless `code` is MPI_SUCCESS; `what` is the call.
void check_mpi(int code, const char* what);

}  // namespace kvmesh
