// The processes of one job: started by mpirun or srun, or one alone. Owns MPI's start and end.
#pragma once

#include "comm/communicator.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace kvmesh {

struct Deadline;

class ProcessGroup {
 public:
  /// Starts MPI: once a process, by its main thread. `deadline` > 0: no collective of this group waits longer for another rank
  /// (rank 0 gives up a little earlier, later ranks being more patient, so that one of them reports it).
  ProcessGroup(int& argc, char**& argv, std::chrono::duration<double> deadline);
  /// Orderly end: waits, within the deadline, for every rank to come here; if one does not, prints a sentence and ends the job with
  /// exit code 70. While an exception is on its way, or after a deadline passed, it waits for nobody and leaves MPI as it is: such
  /// a rank is to call abort().
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const;
  int size() const;
  int local_rank() const;  ///< among the ranks of this host
  int local_size() const;  ///< how many ranks this host has
  bool on_first_host() const;  ///< whether this host is rank 0's
  std::chrono::steady_clock::time_point began() const;  ///< when this object was made
  void set_deadline(std::chrono::duration<double> deadline);
  std::shared_ptr<Deadline> deadline() const;  ///< for communicators that give up together with world()

  Communicator& world();  ///< all ranks, host memory
  Communicator& host();   ///< the ranks of this host, host memory
  Communicator& first_of_hosts();  ///< the hosts' first ranks, rank 0 being the first of them, host memory; for the other ranks: one between these
  /// A communicator between the first n ranks, host memory, and one between the others. Collective over all; it must not outlive the group.
  std::unique_ptr<Communicator> first(int n);

  /// Whether every rank comes to this call within `patience`; for ranks that have failed, to find out whether all have. Asked once.
  bool all_arrive(std::chrono::duration<double> patience);

  /// Ends all ranks at once with `exit_code`. The message must have been printed.
  [[noreturn]] void abort(int exit_code);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// MPI's own name and version, e.g. "Open MPI v4.1.4".
std::string mpi_version();

/// Who does a host's work: its own ranks, or those of rank 0's host for all hosts.
enum class Filled { by_every_host, by_first_host };

/// Memory that the ranks of one host share: u8 [bytes], page-aligned, the same pages for all of them. `fill` writes part `part` of
/// `parts`, each rank of the host another, on a thread of its own (it must not communicate), and all wait for all parts, as long as
/// those ranks' processes live (collective over group.world(), as several hosts may take unequally long; `bytes` alike on all). Afterwards
/// it is read-only for all. A rank alone on its host has it to itself. Pages are huge where the system lets them be. Lives until the last
/// rank lets go of it; nothing stays behind, however the job ends (an unnamed memory file).
/// When `fill` throws, every rank of that host throws the first such rank's error. Where a rank cannot open the first rank's memory file
/// (containers that hide each other's /proc), the first rank writes one part of one, and the others get a copy of their own.
/// Filled::by_first_host: `fill` is called on rank 0's host alone, whose first rank sends the bytes to those of the other hosts, piece by piece, each of
/// them within the deadline; what it throws every rank of the job throws.
Tensor share_on_host(ProcessGroup& group, std::int64_t bytes, const std::function<void(void* memory, int part, int parts)>& fill, Filled filled = Filled::by_every_host);

/// Whether this system makes that memory's pages huge when it is asked to: tries it.
bool can_share_huge_pages();

/// The file's first `bytes`, mapped shared at an address where huge pages fit; null: errno says why not. no_file: fresh memory of this process alone.
constexpr int no_file = -1;
std::shared_ptr<void> map_file(int fd, std::int64_t bytes, int protection);

/// Runs work(part) on the host's ranks part = 0 … parts - 1, on a thread of its own (it must not communicate), and waits for all as
/// share_on_host does. Every rank of the host throws the first error. Collective over group.world(). by_first_host: only there, and every rank of the job throws.
void work_on_host(ProcessGroup& group, int parts, const std::function<void(int part)>& work, Filled filled = Filled::by_every_host);

}  // namespace kvmesh
