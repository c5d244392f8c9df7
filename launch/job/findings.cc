// Judging a job by what its ranks saw.
#include "launch/job/findings.h"

#include "comm/gpus.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>
#include <utility>

namespace kvmesh {
namespace {

using Ranks = std::vector<const Facts*>;

constexpr std::int64_t shm_a_rank = 8 << 20;      // what Open MPI's shared memory takes for a rank
constexpr std::int64_t large_weights = 64 << 20;  // more than caches hold
constexpr std::int64_t locked_enough = 64 << 20;  // for InfiniBand's buffers
constexpr std::int64_t files_beside = 32;         // files that a rank opens besides a connection to every other
constexpr double clocks_agree = 1;                // seconds

// "ranks 0-2, 5 on h1, rank 3 on h2"; "all ranks" where they are more than one and all of `size`.
std::string names_of(Ranks ranks, std::size_t size) {
  if (size > 1 && ranks.size() == size) return "all ranks";
  std::stable_sort(ranks.begin(), ranks.end(), [](const Facts* a, const Facts* b) { return a->host < b->host; });
  std::string text;
  for (std::size_t begin = 0, end; begin < ranks.size(); begin = end) {
    for (end = begin + 1; end < ranks.size() && ranks[end]->host == ranks[begin]->host; ++end) {
    }
    std::vector<std::string> runs;
    for (std::size_t i = begin, last; i < end; i = last + 1) {
      for (last = i; last + 1 < end && ranks[last + 1]->rank == ranks[last]->rank + 1; ++last) {
      }
      runs.push_back(i == last ? std::to_string(ranks[i]->rank) : fmt::format("{}-{}", ranks[i]->rank, ranks[last]->rank));
    }
    text += fmt::format("{}rank{} {} on {}", begin ? ", " : "", end - begin == 1 ? "" : "s", fmt::join(runs, ", "), ranks[begin]->host_name);
  }
  return text;
}

class Judge {
 public:
  explicit Judge(std::span<const Facts> ranks) {
    for (const Facts& f : ranks) {
      all_.push_back(&f);
      hosts_[f.host].push_back(&f);
    }
  }

  std::vector<Finding> findings() {
    found_while_looking();
    launch();
    sameness();
    gpus();
    network();
    for (const auto& [host, ranks] : hosts_) {
      cores(ranks);
      memory(ranks);
    }
    limits();
    clocks();
    output();
    std::stable_sort(findings_.begin(), findings_.end(), [](const Finding& a, const Finding& b) { return a.severity > b.severity; });
    return std::move(findings_);
  }

 private:
  template <typename... Args>
  void error(fmt::format_string<Args...> format, Args&&... args) {
    findings_.push_back({Severity::error, fmt::format(format, std::forward<Args>(args)...)});
  }
  template <typename... Args>
  void warning(fmt::format_string<Args...> format, Args&&... args) {
    findings_.push_back({Severity::warning, fmt::format(format, std::forward<Args>(args)...)});
  }

  std::string names(const Ranks& ranks) const { return names_of(ranks, all_.size()); }
  Ranks such(const std::function<bool(const Facts&)>& is) const {
    Ranks ranks;
    std::copy_if(all_.begin(), all_.end(), std::back_inserter(ranks), [&](const Facts* f) { return is(*f); });
    return ranks;
  }

  // What ranks have noted themselves, once for all that noted the same.
  void found_while_looking() {
    for (const Severity severity : {Severity::error, Severity::warning}) {
      std::map<std::string, Ranks> texts;
      for (const Facts* f : all_) {
        for (const std::string& text : severity == Severity::error ? f->errors : f->warnings) texts[text].push_back(f);
      }
      for (const auto& [text, ranks] : texts) findings_.push_back({severity, fmt::format("{}: {}", names(ranks), text)});
    }
  }

  void launch() {
    const Facts& f = *all_[0];
    if (f.told_size > 0 && f.told_size != f.size) {
      error("{}: {} says {} ranks, but MPI has brought {} together: each would take itself for the whole job. Start with the mpirun of the same MPI ({}), or srun --mpi=pmix", names(all_), f.told_by,
            f.told_size, f.size, f.mpi);
    } else if (f.size == 1 && f.slurm_tasks > 1) {
      warning("one rank, though the Slurm job has {} tasks: start with srun --mpi=pmix or launch/mpirun", f.slurm_tasks);
    }
  }

  // Finds ranks with another value than the others'; ranks without one do not count.
  void same(Severity severity, const std::string& what, const char* todo, const std::function<std::string(const Facts&)>& value) {
    std::map<std::string, Ranks> values;
    for (const Facts* f : all_) {
      if (std::string v = value(*f); !v.empty()) values[std::move(v)].push_back(f);
    }
    if (values.size() < 2) return;
    std::vector<std::string> groups;
    for (const auto& [v, ranks] : values) groups.push_back(fmt::format("{} on {}", v, names(ranks)));
    findings_.push_back({severity, fmt::format("{} differs: {}. {}", what, fmt::join(groups, "; "), todo)});
  }

  // The names are those of any rank's map; who has a map without the name has "none".
  void same_names(Severity severity, const std::string& what, const char* todo, std::map<std::string, std::string> Facts::*map) {
    std::set<std::string> names;
    for (const Facts* f : all_) {
      for (const auto& [name, value] : f->*map) names.insert(name);
    }
    for (const std::string& name : names) {
      same(severity, what + name, todo, [&](const Facts& f) {
        const auto found = (f.*map).find(name);
        return found != (f.*map).end() ? found->second : (f.*map).empty() ? "" : "none";
      });
    }
  }

  void sameness() {
    same(Severity::error, "the program", "Install the same build of kvmesh on every host", [](const Facts& f) { return fmt::format("{} (build {})", f.version, f.build); });
    const bool one_build = std::all_of(all_.begin(), all_.end(), [&](const Facts* f) { return f->build == all_[0]->build; });
    if (one_build) same(Severity::error, "the program's file", "Install the same build of kvmesh on every host", [](const Facts& f) { return f.binary; });
    same(Severity::warning, "MPI", "Install the same MPI on every host", [](const Facts& f) { return f.mpi; });
    same(Severity::error, "the device", "Rows computed by one and by the other would differ in bits: use hosts of one kind, or set KVMESH_CPU_ISA to what all CPUs have", [](const Facts& f) { return f.device; });
    same_names(Severity::error, "--", "Give all ranks the same options and the same --config FILE", &Facts::options);
    same_names(Severity::error, "the checkpoint's ", "Copy the checkpoint again, or use a shared file system", &Facts::files);
    same(Severity::warning, "the prompts' file", "Only rank 0's is read; a job that goes on with rank 0 elsewhere would be refused", [](const Facts& f) { return f.prompts; });
    if (on_gpus()) same_names(Severity::warning, "the variable ", "NCCL wants it alike on all ranks: pass it on with mpirun -x, or export it in the batch script", &Facts::nccl);
  }

  bool on_gpus() const {
    return std::any_of(all_.begin(), all_.end(), [](const Facts* f) { return f->device.starts_with("cuda"); });
  }

  void gpus() {
    if (!on_gpus() || all_[0]->share_gpus) return;
    std::map<std::string, Ranks> users;
    for (const auto& [host, ranks] : hosts_) {
      std::set<std::string> seen;
      std::vector<std::vector<std::string>> visible;
      for (const Facts* f : ranks) {
        seen.insert(f->gpus.begin(), f->gpus.end());
        visible.push_back(f->gpus);
      }
      if (std::any_of(visible.begin(), visible.end(), [](const auto& gpus) { return gpus.empty(); })) continue;  // the driver does not say
      if (seen.size() < ranks.size()) {
        error("{} has {} GPU{} for {} ranks: start one rank a GPU, and let CUDA_VISIBLE_DEVICES name each once", ranks[0]->host_name, seen.size(), seen.size() == 1 ? "" : "s", ranks.size());
        continue;
      }
      const std::vector<GpuChoice> choices = choose_gpus(visible, true);
      for (std::size_t i = 0; i < ranks.size(); ++i) users[visible[i][static_cast<std::size_t>(choices[i].index)]].push_back(ranks[i]);
    }
    for (const auto& [gpu, ranks] : users) {
      if (ranks.size() > 1) error("{} would share one GPU ({}): give each rank its own (srun --gpus-per-task=1, or the same CUDA_VISIBLE_DEVICES for all ranks of a host)", names(ranks), gpu);
    }
  }

  // Does NCCL_SOCKET_IFNAME allow this interface? A list of prefixes; "=" before it: of names; "^": of what is not wanted.
  static bool allows(std::string_view list, const std::string& interface) {
    const bool unwanted = list.starts_with('^');
    if (unwanted) list.remove_prefix(1);
    const bool exact = list.starts_with('=');
    if (exact) list.remove_prefix(1);
    bool named = false;
    for (std::size_t begin = 0; begin <= list.size();) {
      const std::size_t end = std::min(list.find(',', begin), list.size());
      const std::string_view word = list.substr(begin, end - begin);
      named = named || (!word.empty() && (exact ? interface == word : interface.starts_with(word)));
      begin = end + 1;
    }
    return named != unwanted;
  }

  void network() {
    const bool gpus = on_gpus();
    const Severity severity = gpus ? Severity::error : Severity::note;
    const auto usable = [](const Facts& f, bool other_hosts) {
      return std::any_of(f.interfaces.begin(), f.interfaces.end(), [&](const std::string& i) { return (f.nccl_interface.empty() || allows(f.nccl_interface, i)) && !(other_hosts && i == "lo"); });
    };
    std::map<std::string, Ranks> absent;
    for (const Facts* f : all_) {
      if (!f->nccl_interface.empty() && !usable(*f, false)) absent[f->nccl_interface].push_back(f);
    }
    for (const auto& [variable, ranks] : absent) {
      findings_.push_back({severity, fmt::format("NCCL_SOCKET_IFNAME={} names no interface of {} ({} are up): name one of these, or unset it{}", variable, names(ranks),
                                             fmt::join(ranks[0]->interfaces, ", "), gpus ? "" : " (NCCL is for GPUs)")});
    }
    if (hosts_.size() < 2 || !absent.empty()) return;
    if (const Ranks shut = such([&](const Facts& f) { return !usable(f, true); }); !shut.empty() && (gpus || !shut[0]->nccl_interface.empty())) {
      findings_.push_back({severity, fmt::format("NCCL would have only the loopback interface on {}, and cannot reach other hosts: set NCCL_SOCKET_IFNAME to an interface that all hosts share", names(shut))});
    }
  }

  // For every set of cores to which ranks are confined: the threads of all that are confined to it, and the cores.
  void cores(const Ranks& ranks) {
    std::set<std::vector<int>> sets;
    std::set<int> used;
    for (const Facts* f : ranks) {
      sets.insert(f->cpus);
      used.insert(f->cpus.begin(), f->cpus.end());
    }
    sets.insert({used.begin(), used.end()});
    int offered = 0;
    for (const Facts* f : ranks) offered = std::max(offered, f->launcher_cpus);
    double worst = 1;
    Severity severity = Severity::note;
    std::string text;
    const auto judge = [&](const Ranks& confined, double cores, const char* of) {
      int threads = 0;
      for (const Facts* f : confined) threads += std::max(f->threads, 0);
      if (threads / cores <= worst) return;
      worst = threads / cores;
      // More ranks than cores, with a thread each, is what launch/mpirun expects.
      severity = threads == static_cast<int>(confined.size()) && cores >= offered ? Severity::note : Severity::warning;
      text = fmt::format("{} {} {} thread{} on {:.3g} core{}{}: start fewer ranks, give them fewer --threads, or bind them otherwise", names(confined), confined.size() == 1 ? "has" : "have together",
                         threads, threads == 1 ? "" : "s", cores, cores == 1 ? "" : "s", of);
    };
    for (const std::vector<int>& set : sets) {
      Ranks confined;
      std::copy_if(ranks.begin(), ranks.end(), std::back_inserter(confined), [&](const Facts* f) { return std::includes(set.begin(), set.end(), f->cpus.begin(), f->cpus.end()); });
      if (!set.empty()) judge(confined, static_cast<double>(set.size()), "");
    }
    std::map<std::string, Ranks> groups;
    for (const Facts* f : ranks) groups[f->cgroup].push_back(f);
    for (const auto& [group, members] : groups) {
      if (members[0]->quota > 0) judge(members, members[0]->quota, " (their cgroup's quota)");
    }
    if (!text.empty()) findings_.push_back({severity, text});
    if (ranks[0]->told_size > 0 && static_cast<int>(used.size()) < offered) {
      const bool one = std::all_of(ranks.begin(), ranks.end(), [](const Facts* f) { return f->cpus.size() == 1; });
      warning("{} {} bound to {}{} of the {} cores that the launcher may use: start with launch/mpirun or --bind-to none (srun: --cpu-bind=none, or --cpus-per-task)", names(ranks),
              ranks.size() == 1 ? "is" : "are", one && ranks.size() > 1 ? "one core each, " : "", used.size(), offered);
    }
  }

  static std::int64_t row_of(const Facts& f, std::int64_t tokens) { return f.row_bytes + tokens * f.token_bytes; }

  void memory(const Ranks& ranks) {
    Ranks users;
    std::copy_if(ranks.begin(), ranks.end(), std::back_inserter(users), [](const Facts* f) { return f->weights >= 0 && f->available >= 0 && !f->device.starts_with("cuda"); });
    if (users.empty()) return;
    const Facts &one = *users[0], &first = *all_[0];
    std::int64_t fixed = one.weights, places = 0, available = one.available;
    for (const Facts* f : users) {
      fixed += f->workspace;
      places += f->places;
      available = std::min(available, f->available);
    }
    if (fixed > available) {
      error("{}: weights and workspaces need {}, and {} of memory are left: use fewer ranks, --dtype bfloat16, --quantize int8, or a host with more memory", one.host_name, size_text(fixed),
            size_text(available));
      return;
    }
    if (users.size() > 1 && one.small_pages && one.weights > large_weights) {
      findings_.push_back({Severity::note, fmt::format("{}: {} ranks share weights in pages of 4 KiB, which makes decoding slower: \"advise\" in /sys/kernel/mm/transparent_hugepage/shmem_enabled (root "
                                                       "writes it), or Linux 6.1 or later, makes them huge",
                                                       one.host_name, users.size())});
    }
    // Of caches and logits only what rows fill is touched.
    const std::int64_t rows = std::min(places, first.rows), tokens = std::min(one.seqlen, first.row_tokens);
    const std::int64_t known = fixed + rows * row_of(one, tokens), most = fixed + places * row_of(one, one.seqlen);
    if (first.rows >= 0 && known > available) {
      error("{}: {} rows of up to {} tokens need {} of memory with weights and workspaces, and {} are left: use a smaller --batch-size or more hosts", one.host_name, rows, tokens, size_text(known),
            size_text(available));
    } else if (most > available) {
      warning("{}: {} rows would need {} of memory if all came to {} tokens, and {} are left: use a smaller --batch-size or more hosts", one.host_name, places, size_text(most), one.seqlen,
              size_text(available));
    }
  }

  void limits() {
    const auto needed = [](const Facts& f) { return f.mapped + f.weights + f.workspace + f.places * row_of(f, f.seqlen); };
    const auto connections = [](const Facts& f) { return f.files_open + f.size + files_beside; };
    if (const Ranks r = such([&](const Facts& f) { return f.address_space >= 0 && f.weights >= 0 && !f.device.starts_with("cuda") && needed(f) > f.address_space; }); !r.empty()) {
      error("the address space of {} is limited to {} (ulimit -v), and {} are needed: ulimit -v unlimited", names(r), size_text(r[0]->address_space), size_text(needed(*r[0])));
    }
    if (const Ranks r = such([&](const Facts& f) { return f.files_limit >= 0 && f.files_open >= 0 && connections(f) > f.files_limit; }); !r.empty()) {
      error("{} may open {} files (ulimit -n), and may need {}: raise it in the shell or in /etc/security/limits.conf", names(r), r[0]->files_limit, connections(*r[0]));
    }
    if (const Ranks r = such([](const Facts& f) { return f.locked_limit >= 0 && f.locked_limit < locked_enough; }); !r.empty()) {
      warning("{} may lock {} of memory (ulimit -l), too little for InfiniBand: ulimit -l unlimited", names(r), size_text(r[0]->locked_limit));
    }
    for (const auto& [host, ranks] : hosts_) {
      const std::int64_t wanted = static_cast<std::int64_t>(ranks.size()) * shm_a_rank;
      if (ranks.size() > 1 && ranks[0]->shm_free >= 0 && ranks[0]->shm_free < wanted) {
        warning("{}: {} are free in /dev/shm, and {} ranks of MPI may use {}: give the container more (docker --shm-size), or set OMPI_MCA_btl_vader_backing_directory to another folder", ranks[0]->host_name,
                size_text(ranks[0]->shm_free), ranks.size(), size_text(wanted));
      }
    }
  }

  void clocks() {
    const auto wrong = such([](const Facts& f) { return std::abs(f.clock_ahead) > clocks_agree; });
    if (wrong.empty()) return;
    const double ahead = (*std::max_element(wrong.begin(), wrong.end(), [](const Facts* a, const Facts* b) { return std::abs(a->clock_ahead) < std::abs(b->clock_ahead); }))->clock_ahead;
    warning("the clock of {} is {:.1f} s {} rank 0's ({}): logs will not fit together, and munge or Kerberos may refuse. Synchronize the hosts' clocks (chrony, ntpd)", names(wrong), std::abs(ahead),
            ahead > 0 ? "ahead of" : "behind", all_[0]->host_name);
  }

  void output() {
    const Facts& f = *all_[0];
    if (f.output_free >= 0 && f.output_bytes > f.output_free) {
      warning("rank 0 on {}: journal and output may need up to {} together, and {} are free: make room, or write elsewhere", f.host_name, size_text(f.output_bytes), size_text(f.output_free));
    }
    if (const Ranks blind = such([](const Facts& r) { return !r.sees_output; }); !blind.empty()) {
      warning("{} {} not see the folder of --output that rank 0 on {} writes to: the job can only go on with rank 0 there. Use a shared file system", names(blind), blind.size() == 1 ? "does" : "do",
              f.host_name);
    }
  }

  Ranks all_;
  std::map<int, Ranks> hosts_;
  std::vector<Finding> findings_;
};

}  // namespace

std::vector<Finding> findings(std::span<const Facts> ranks) { return Judge(ranks).findings(); }

std::string size_text(std::int64_t bytes) {
  constexpr const char* units[] = {"kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes) / 1000;
  int unit = 0;
  for (; value >= 1000 && unit < 3; ++unit) value /= 1000;
  return fmt::format("{:.{}f} {}", value, value < 10 ? 1 : 0, units[unit]);
}

}  // namespace kvmesh
