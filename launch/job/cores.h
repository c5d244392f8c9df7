// Which cores a rank may use, and how many threads it should start there.
#pragma once

#include "comm/process_group.h"

#include <span>
#include <string>
#include <vector>

namespace kvmesh {

/// What confines a process: the cores that it may run on, and its cgroup, which may have a limit of so many cores' time (else negative).
struct Cores {
  std::vector<int> cpus;
  std::string cgroup;
  double quota = -1;
};

/// Of this process.
Cores own_cores();

/// Threads for each of a host's processes: every core goes in equal shares to those that may use it, a cgroup's time likewise; at least one each.
std::vector<int> fair_threads(std::span<const Cores> processes);

/// This rank's. Collective over the host's ranks.
int fair_threads(ProcessGroup& group);

}  // namespace kvmesh
