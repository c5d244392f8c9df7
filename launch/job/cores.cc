// Affinity masks and cgroups.
#include "launch/job/cores.h"

#include "launch/job/agree.h"

#include <nlohmann/json.hpp>
#include <sched.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

std::vector<double> numbers_in(const fs::path& file) {
  std::vector<double> numbers;
  std::ifstream in(file);
  for (double n = 0; in >> n;) numbers.push_back(n);
  return numbers;
}

// Of this cgroup and of those that it lies in; version 1 has a tree for each controller, version 2 one for all.
void look_at_cgroups(Cores& cores) {
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",cpu,") == std::string::npos) continue;
    cores.cgroup += line.substr(second + 1);
    const fs::path root = fs::path("/sys/fs/cgroup") / (unified ? "" : "cpu");
    for (fs::path path = line.substr(second + 1);; path = path.parent_path()) {  // in a container only the root may be there
      const fs::path folder = root / path.relative_path();
      auto limit = numbers_in(folder / "cpu.max");  // quota and period; "max 100000": none
      if (limit.empty()) {
        limit = numbers_in(folder / "cpu.cfs_quota_us");
        for (const double period : numbers_in(folder / "cpu.cfs_period_us")) limit.push_back(period);
      }
      if (limit.size() == 2 && limit[0] > 0 && limit[1] > 0 && (cores.quota < 0 || limit[0] / limit[1] < cores.quota)) cores.quota = limit[0] / limit[1];
      if (!path.has_relative_path()) break;
    }
  }
}

}  // namespace

Cores own_cores() {
  Cores cores;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) cores.cpus.push_back(i);
    }
  }
  look_at_cgroups(cores);
  return cores;
}

std::vector<int> fair_threads(std::span<const Cores> processes) {
  std::map<int, int> users;            // of a core
  std::map<std::string, int> members;  // of a cgroup
  for (const Cores& p : processes) {
    for (const int cpu : p.cpus) ++users[cpu];
    ++members[p.cgroup];
  }
  std::vector<int> threads;
  for (const Cores& p : processes) {
    double share = 1e-9;  // thirds add up to a little less than one
    for (const int cpu : p.cpus) share += 1.0 / users[cpu];
    if (p.quota > 0) share = std::min(share, p.quota / members[p.cgroup] + 1e-9);
    threads.push_back(std::max(1, static_cast<int>(share)));
  }
  return threads;
}

int fair_threads(ProcessGroup& group) {
  const Cores own = own_cores();
  std::vector<Cores> processes;
  for (const std::string& bytes : gather_bytes(group.host(), nlohmann::json{own.cpus, own.cgroup, own.quota}.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace))) {
    const nlohmann::json j = nlohmann::json::parse(bytes);
    processes.push_back({j[0].get<std::vector<int>>(), j[1].get<std::string>(), j[2].get<double>()});
  }
  return fair_threads(processes)[static_cast<std::size_t>(group.local_rank())];
}

}  // namespace kvmesh
