// What ranks say to each other: collectives over typed tensors. One implementation a kind of memory: self (one rank), MPI (host),
// later NCCL (device). Every rank of the communicator must make the same calls in the same order. Every call returns within the
// communicator's deadline or throws Error(Fault::rank) that names the collective.
#pragma once

#include "runtime/tensor.h"

#include <cstdint>
#include <memory>
#include <span>

namespace kvmesh {

enum class Reduce { sum, min, max };

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// out [size, …] = every rank's `in` […], by rank; equal shapes and dtypes on all ranks.
  virtual void all_gather(const Tensor& in, const Tensor& out) = 0;
  /// out [sum(counts), …] = the ranks' `in` [counts[rank], …] one after another; counts may be zero and are the same on all ranks.
  virtual void all_gather_ragged(const Tensor& in, std::span<const std::int64_t> counts, const Tensor& out) = 0;
  /// In place: every element becomes the sum (or min, max) over the ranks. i32, i64, u64, f32, f64.
  virtual void all_reduce(const Tensor& inout, Reduce op) = 0;
  /// In place: root's elements on every rank.
  virtual void broadcast(const Tensor& inout, int root) = 0;
  /// Returns when all ranks have come here.
  virtual void barrier() = 0;
};

/// The communicator of one rank alone: nothing is sent.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace kvmesh
