// What a rank sees of itself, its host and the job's files, for kvmesh doctor and for the short check that generate makes by itself.
#pragma once

#include "launch/job/generation.h"

#include <map>
#include <string>
#include <vector>

namespace kvmesh {

/// Texts are empty and numbers negative where nothing was looked at or nothing can be known. Bytes are bytes of this host's memory unless said otherwise.
struct Facts {
  int rank = 0, size = 1;              ///< as MPI says
  int host = 0;                        ///< the rank of the host's first rank
  std::string host_name;
  std::string told_by;                 ///< the launcher's environment variable with the number of ranks …
  int told_rank = -1, told_size = -1;  ///< … and what it said
  int slurm_tasks = -1;                ///< of a Slurm job in which no launcher was used

  std::string version, build, mpi;
  std::string binary;                          ///< hash of the program's file
  std::map<std::string, std::string> options;  ///< that must be the same on all ranks
  std::map<std::string, std::string> nccl;     ///< NCCL_… variables that must be
  std::map<std::string, std::string> files;    ///< hashes of the checkpoint's files by name
  std::string prompts;                         ///< hash of the prompts' file, where this rank sees it

  std::vector<int> cpus;               ///< that the rank may run on
  int launcher_cpus = -1;              ///< how many the process that started it may use
  std::string cgroup;                  ///< ranks of the same one share
  double quota = -1;                   ///< … so many cores' time
  int threads = -1;
  std::string device;                  ///< Device::kind
  std::vector<std::string> gpus;       ///< that the rank sees; choose_gpus says which it takes
  bool share_gpus = false;             ///< --share-gpus

  std::vector<std::string> interfaces; ///< network interfaces that are up and have an address
  std::string nccl_interface;          ///< NCCL_SOCKET_IFNAME

  std::int64_t available = -1;         ///< memory that is left, to the host or to the rank's cgroup
  std::int64_t shm_free = -1;          ///< of /dev/shm
  bool small_pages = false;            ///< memory that ranks share has no huge pages
  std::int64_t address_space = -1, mapped = -1;         ///< its limit (ulimit -v) if there is one; what of it is used now
  std::int64_t locked_limit = -1;      ///< ulimit -l in bytes if there is one and the host has InfiniBand
  std::int64_t files_limit = -1, files_open = -1;       ///< ulimit -n
  std::int64_t weights = -1;           ///< bytes, once a host
  std::int64_t workspace = -1;         ///< bytes of this rank, however many rows it has
  std::int64_t row_bytes = -1, token_bytes = -1;        ///< more for a row, and for each token of it
  std::int64_t places = -1, seqlen = -1;                ///< rows of this rank at once; tokens of the longest

  double clock_ahead = 0;              ///< seconds before rank 0's clock
  bool sees_output = true;             ///< the file that rank 0 wrote beside the output

  // Rank 0's alone:
  std::int64_t rows = -1, row_tokens = -1;              ///< completions to be made, about; the most tokens of one
  std::int64_t output_bytes = -1, output_free = -1;     ///< that output and journal may need together; that their disk has

  std::vector<std::string> errors, warnings;            ///< found while looking, with what to do about it
};

/// What can be seen without any option and without reading a file of the job's. Collective over the host's ranks.
Facts look_around(ProcessGroup& group);

/// The GPUs of `driver` (/proc/driver/nvidia/gpus; a folder each) by UUID, as far as `visible` (CUDA_VISIBLE_DEVICES, or null) lets a rank see them.
std::vector<std::string> visible_gpus(const std::filesystem::path& driver, const char* visible);

/// Bytes that travel between ranks, and back.
std::string to_bytes(const Facts& facts);
Facts facts_of(const std::string& bytes);

}  // namespace kvmesh
