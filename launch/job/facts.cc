// Looking at a rank's surroundings.
#include "launch/job/facts.h"

#include "launch/job/cores.h"
#include "launch/version.h"

#include <ifaddrs.h>
#include <net/if.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>
#include <string_view>

extern char** environ;

namespace kvmesh {

namespace fs = std::filesystem;

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(Facts, rank, size, host, host_name, told_by, told_rank, told_size, slurm_tasks, version, build, mpi, binary, options, nccl, files, prompts, cpus,
                                                launcher_cpus, cgroup, quota, threads, device, gpus, share_gpus, interfaces, nccl_interface, available, shm_free, small_pages, address_space, mapped, locked_limit,
                                                files_limit, files_open, weights, workspace, row_bytes, token_bytes, places, seqlen, clock_ahead, sees_output, rows, row_tokens, output_bytes, output_free,
                                                errors, warnings)

namespace {

int number_in(const char* name) {
  const char* text = std::getenv(name);
  return text && *text ? std::atoi(text) : -1;
}

// What mpirun or srun says by itself, whatever MPI made of it.
void look_at_launcher(Facts& facts) {
  constexpr std::pair<const char*, const char*> says[] = {
      {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"}, {"MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"}, {"PMI_SIZE", "PMI_RANK"}, {"SLURM_STEP_NUM_TASKS", "SLURM_PROCID"}};
  for (const auto& [size, rank] : says) {
    facts.told_size = number_in(size);
    facts.told_rank = number_in(rank);
    if (facts.told_size <= 0) continue;
    facts.told_by = size;
    return;
  }
  facts.slurm_tasks = number_in("SLURM_NTASKS");
}

int cpus_of(pid_t process) {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(process, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 0;
}

// Numbers behind each other in a small file; -1 for "max". Nothing where it cannot be read.
std::vector<std::int64_t> numbers_in(const fs::path& file) {
  std::vector<std::int64_t> numbers;
  std::ifstream in(file);
  for (std::string word; in >> word;) numbers.push_back(word == "max" ? -1 : std::strtoll(word.c_str(), nullptr, 10));
  return numbers;
}

// The number behind `key` in lines "key number …".
std::int64_t value_in(const fs::path& file, std::string_view key) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    std::int64_t value = -1;
    if (words >> name >> value && name == key) return value;
  }
  return -1;
}

void take_smaller(auto& least, auto value) {
  if (value >= 0 && (least < 0 || value < least)) least = value;
}

// Limits of this cgroup and of those that it lies in; version 1 has a tree for each controller, version 2 one for all.
void look_at_memory_limits(Facts& facts) {
  std::ifstream in("/proc/self/cgroup");
  for (std::string line; std::getline(in, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool unified = controllers == ",,";
    if (!unified && controllers.find(",memory,") == std::string::npos) continue;
    const fs::path root = fs::path("/sys/fs/cgroup") / (unified ? "" : "memory");
    for (fs::path path = line.substr(second + 1);; path = path.parent_path()) {  // in a container only the root may be there
      const fs::path folder = root / path.relative_path();
      for (const auto& [limit, usage, cache] : {std::tuple("memory.max", "memory.current", ""), std::tuple("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")}) {
        const auto most = numbers_in(folder / limit), used = numbers_in(folder / usage);
        if (most.empty() || most[0] < 0 || used.empty()) continue;
        const auto of_files = [&](const char* kind) { return std::max<std::int64_t>(0, value_in(folder / "memory.stat", std::string(cache) + kind)); };  // these give way
        take_smaller(facts.available, std::max<std::int64_t>(0, most[0] - used[0] + of_files("inactive_file") + of_files("active_file")));
      }
      if (!path.has_relative_path()) break;
    }
  }
}

// -1: none.
std::int64_t limit_of(decltype(RLIMIT_AS) what) {
  rlimit limit = {};
  return ::getrlimit(what, &limit) != 0 || limit.rlim_cur > static_cast<rlim_t>(std::numeric_limits<std::int64_t>::max()) ? -1 : static_cast<std::int64_t>(limit.rlim_cur);
}

void look_at_limits(Facts& facts) {
  std::error_code error;
  facts.address_space = limit_of(RLIMIT_AS);
  if (const auto pages = numbers_in("/proc/self/statm"); !pages.empty()) facts.mapped = pages[0] * ::sysconf(_SC_PAGESIZE);
  facts.files_limit = limit_of(RLIMIT_NOFILE);
  facts.files_open = std::distance(fs::directory_iterator("/proc/self/fd", error), fs::directory_iterator());
  if (fs::directory_iterator("/sys/class/infiniband", error) != fs::directory_iterator()) facts.locked_limit = limit_of(RLIMIT_MEMLOCK);
  struct statvfs shm = {};
  if (::statvfs("/dev/shm", &shm) == 0) facts.shm_free = static_cast<std::int64_t>(shm.f_bavail * shm.f_frsize);
  std::string words;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/shmem_enabled"), words);
  const bool unasked = words.find("[never]") == std::string::npos && words.find("[deny]") == std::string::npos;
  facts.small_pages = !unasked && !can_share_huge_pages();
}

void look_at_network(Facts& facts) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return;
  std::set<std::string> names;
  for (const ifaddrs* i = all; i; i = i->ifa_next) {
    if (i->ifa_addr && (i->ifa_addr->sa_family == AF_INET || i->ifa_addr->sa_family == AF_INET6) && (i->ifa_flags & IFF_UP)) names.insert(i->ifa_name);
  }
  ::freeifaddrs(all);
  facts.interfaces.assign(names.begin(), names.end());
}

// Those that NCCL wants to be alike on all ranks, in contrast to names of a host's own interfaces, files and identity.
void look_at_nccl(Facts& facts) {
  for (char** e = environ; *e; ++e) {
    const std::string_view variable = *e, name = variable.substr(0, variable.find('='));
    if (name == "NCCL_SOCKET_IFNAME") facts.nccl_interface = variable.substr(name.size() + 1);
    const bool of_host = name == "NCCL_SOCKET_IFNAME" || name == "NCCL_IB_HCA" || name == "NCCL_HOSTID" || name.find("FILE") != name.npos;
    if (name.starts_with("NCCL_") && !of_host) facts.nccl.emplace(name, variable.substr(name.size() + 1));
  }
}

}  // namespace

std::vector<std::string> visible_gpus(const fs::path& driver, const char* visible) {
  std::error_code error;
  std::set<fs::path> folders;  // named after PCI addresses: in their order
  for (const auto& entry : fs::directory_iterator(driver, error)) folders.insert(entry.path());
  std::vector<std::string> all;
  for (const fs::path& folder : folders) {
    std::ifstream in(folder / "information");
    for (std::string line; std::getline(in, line);) {
      if (line.starts_with("GPU UUID:")) all.push_back(line.substr(line.find_last_of(" \t") + 1));
    }
  }
  if (!visible) return all;
  std::vector<std::string> seen;
  std::istringstream words(visible);
  for (std::string word; std::getline(words, word, ',');) {  // as CUDA reads it: up to the first word that names none
    const bool number = !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
    const auto found = number ? (word.size() < 6 && std::stoul(word) < all.size() ? all.begin() + std::stol(word) : all.end())
                              : std::find_if(all.begin(), all.end(), [&](const std::string& id) { return !word.empty() && id.starts_with(word); });
    if (found == all.end()) break;
    seen.push_back(*found);
  }
  return seen;
}

Facts look_around(ProcessGroup& group) {
  Facts facts;
  facts.rank = group.rank();
  facts.size = group.size();
  const Tensor first = host_tensor(DType::i32, {1});
  first.data<std::int32_t>()[0] = group.rank();
  group.host().broadcast(first, 0);
  facts.host = first.data<std::int32_t>()[0];
  char name[256] = "";
  ::gethostname(name, sizeof name - 1);
  facts.host_name = name;
  look_at_launcher(facts);
  facts.version = version_text();
  facts.build = build_text();
  facts.mpi = mpi_version();
  const Cores own = own_cores();
  facts.cpus = own.cpus;
  facts.cgroup = own.cgroup;
  facts.quota = own.quota;
  facts.launcher_cpus = cpus_of(::getppid());
  take_smaller(facts.launcher_cpus, number_in("SLURM_CPUS_ON_NODE"));
  const std::int64_t kilobytes = value_in("/proc/meminfo", "MemAvailable:");
  if (kilobytes >= 0) facts.available = kilobytes * 1024;
  look_at_memory_limits(facts);
  look_at_limits(facts);
  look_at_network(facts);
  look_at_nccl(facts);
  facts.gpus = visible_gpus("/proc/driver/nvidia/gpus", std::getenv("CUDA_VISIBLE_DEVICES"));
  return facts;
}

std::string to_bytes(const Facts& facts) { return nlohmann::json(facts).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace); }

Facts facts_of(const std::string& bytes) { return nlohmann::json::parse(bytes).get<Facts>(); }

}  // namespace kvmesh
