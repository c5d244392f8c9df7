// What ranks say to each other: collectives over typed tensors. One implementation a kind of memory: self (one rank), MPI (host),
// NCCL (device). Every rank of the communicator must make the same calls in the same order, with the same shapes. Shapes and
// dtypes are checked once, here, before anything is sent. No call waits longer than the communicator's deadline for another rank:
// it throws Error(Fault::rank) that names the collective, and after that the communicator can only be dropped.
#pragma once

#include "comm/fold.h"
#include "runtime/tensor.h"

#include <cstdint>
#include <memory>
#include <span>

namespace kvmesh {

/// A collective that has begun and goes on while this rank computes. poll() may be called by any one thread, while no other one calls a communicator.
/// Dropped before it is done, its memory stays with the communicator, which must outlive it.
class Pending {
 public:
  virtual ~Pending() = default;
  /// Moves it on, without waiting; whether it is done.
  virtual bool poll() = 0;
  /// Returns when it is done, within the communicator's deadline.
  virtual void wait() = 0;
};

class Communicator {
 public:
  Communicator() = default;
  virtual ~Communicator() = default;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// out [size, …] = every rank's `in` […], by rank; equal shapes and dtypes on all ranks. `in` may be this rank's own rows of
  /// `out`; otherwise the two must not overlap.
  void all_gather(const Tensor& in, const Tensor& out);
  /// out [sum(counts), …] = the ranks' `in` [counts[rank], …] one after another; counts may be zero and are the same on all ranks.
  /// `in` may be this rank's own rows of `out`.
  void all_gather_ragged(const Tensor& in, std::span<const std::int64_t> counts, const Tensor& out);
  /// In place: every element becomes the sum (or min, max) over the ranks. i32, i64, u64, f32, f64. Folded in the order of the
  /// ranks on each of them: the same bits on all ranks, whoever came first. Integer sums wrap; NaN wins over every number.
  void all_reduce(const Tensor& inout, Reduce op);
  /// In place: root's elements on every rank. Root's own memory is only read.
  void broadcast(const Tensor& inout, int root);
  /// To every rank its own rows: `in` [sum(send_counts), …] has send_counts[r] rows for rank r, one rank after another, and `out`
  /// [sum(receive_counts), …] gets receive_counts[r] rows from it. What r sends to s is what s receives from r. No overlap of the two.
  void exchange(const Tensor& in, std::span<const std::int64_t> send_counts, const Tensor& out, std::span<const std::int64_t> receive_counts);
  /// exchange() that is only begun, in host memory; of several, each begins on all ranks in the same order. Device memory: done when it returns.
  std::unique_ptr<Pending> begin_exchange(const Tensor& in, std::span<const std::int64_t> send_counts, const Tensor& out, std::span<const std::int64_t> receive_counts);
  /// Begins, in place: every element f32 becomes the sum over the ranks as the communicator's library adds them, in an order of its own, which is
  /// promised to be neither all_reduce's nor that of another number of ranks. Host memory.
  std::unique_ptr<Pending> begin_library_sum(const Tensor& inout);
  /// Returns when all ranks have come here.
  virtual void barrier() = 0;
  /// Device memory: returns when all that was enqueued on the communicator's stream is done, within the deadline; to be called after launching
  /// a graph that has collectives in it. Host memory: they are done when they return.
  virtual void wait() {}

 private:
  /// counts[r]: elements of rank r.
  virtual void do_all_gather(const Tensor& in, std::span<const std::int64_t> counts, const Tensor& out) = 0;
  virtual void do_all_reduce(const Tensor& inout, Reduce op) = 0;
  virtual void do_broadcast(const Tensor& inout, int root) = 0;
  /// Bytes for each rank, and from it.
  virtual void do_exchange(const Tensor& in, std::span<const std::int64_t> send, const Tensor& out, std::span<const std::int64_t> receive) = 0;
  virtual std::unique_ptr<Pending> do_begin_exchange(const Tensor& in, std::span<const std::int64_t> send, const Tensor& out, std::span<const std::int64_t> receive);
  virtual std::unique_ptr<Pending> do_begin_library_sum(const Tensor& inout);
};

/// The communicator of one rank alone: nothing is sent.
std::unique_ptr<Communicator> make_self_communicator();

}  // namespace kvmesh
