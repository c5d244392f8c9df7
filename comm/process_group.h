// The processes of one job: started by mpirun or srun, or one alone. Owns MPI's start and end.
#pragma once

#include "comm/communicator.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace kvmesh {

class ProcessGroup {
 public:
  /// Starts MPI. `deadline`: no collective of this group waits longer for another rank.
  ProcessGroup(int& argc, char**& argv, std::chrono::duration<double> deadline);
  /// Orderly end: every rank must come here; without an abort() it waits for the others.
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const;
  int size() const;
  int local_rank() const;  ///< among the ranks of this host
  int local_size() const;  ///< how many ranks this host has
  void set_deadline(std::chrono::duration<double> deadline);

  Communicator& world();  ///< all ranks, host memory
  Communicator& host();   ///< the ranks of this host, host memory

  /// Ends all ranks at once with `exit_code`. The message must have been printed.
  [[noreturn]] void abort(int exit_code);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Memory that the ranks of one host share: u8 [bytes], page-aligned, the same pages for all of them. `fill` runs on the host's
/// first rank only, the others wait for it (collective over group.host(), `bytes` alike on all); afterwards it is read-only for
/// all. Lives until the last rank lets go of it; nothing stays behind, however the job ends (an unnamed memory file).
/// When `fill` throws, every rank of the host throws.
Tensor share_on_host(ProcessGroup& group, std::int64_t bytes, const std::function<void(void*)>& fill);

}  // namespace kvmesh
