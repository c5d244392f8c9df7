// Memory that the ranks of one host share: a sealed, unnamed memory file of the host's first rank that the others open through /proc; all write
// parts of it before it is sealed. A rank that is alone on its host has memory of its own. Pages are huge where the system lets them be: weights are
// read from end to end each step, and a fifth of the bandwidth is lost to 4 KiB pages (docs/speed.md).
#include "comm/process_group.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <future>
#include <utility>

namespace kvmesh {
namespace {

constexpr std::chrono::milliseconds sign_of_life{200};

/// Owned by the scope.
struct File {
  int fd = -1;
  explicit File(int f) : fd(f) {}
  ~File() {
    if (fd >= 0) close(fd);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
};

/// Where the first rank's file is; one broadcast.
struct Place {
  std::int64_t pid = 0, fd = -1, device = 0, inode = 0;
};

/// How a rank's part went; one broadcast where it failed.
struct Outcome {
  std::int64_t done = 0;  // else it failed
  std::int64_t fault = static_cast<std::int64_t>(Fault::rank);
  char message[1008] = "";
};

template <typename Message>
Tensor bytes_of(Message& message) {
  return {nullptr, &message, DType::u8, {sizeof message}};
}

std::int64_t least(Communicator& ranks, std::int64_t value) {
  const Tensor t(nullptr, &value, DType::i64, {1});
  ranks.all_reduce(t, Reduce::min);
  return value;
}

[[noreturn]] void fail_with_errno(const char* what, std::int64_t bytes) {
  fail(Fault::rank, "shared memory of {} bytes: {}: {}", bytes, what, std::strerror(errno));
}

/// Pages of the file.
Tensor map(int fd, std::int64_t bytes, int protection) {
  std::shared_ptr<void> mapped = map_file(fd, bytes, protection);
  if (!mapped) fail_with_errno("mmap", bytes);
  void* const p = mapped.get();
  return {std::move(mapped), p, DType::u8, {bytes}};
}

using Fill = std::function<void(void* memory, int part, int parts)>;

constexpr std::int64_t huge_page = std::int64_t{1} << 21;

/// Makes part `part` of `parts` of fresh memory huge pages, near this rank. Linux gives those to a memory file only when asked (MADV_COLLAPSE, from 6.1 on), and
/// where something is in each. Whether it did.
bool make_huge(const Tensor& memory, int part, int parts) {
#if !defined(MADV_COLLAPSE)
  constexpr int MADV_COLLAPSE = 25;
#endif
  std::uint8_t* const bytes = memory.data<std::uint8_t>();
  const std::int64_t pages = memory.size(0) / huge_page, begin = pages * part / parts, end = pages * (part + 1) / parts;
  for (std::int64_t i = begin; i < end; ++i) __atomic_fetch_or(bytes + i * huge_page, 0, __ATOMIC_RELAXED);  // another rank may already have filled it
  return begin == end || madvise(bytes + begin * huge_page, static_cast<std::size_t>((end - begin) * huge_page), MADV_COLLAPSE) == 0;
}

void fill_part(const Tensor& memory, int part, int parts, const Fill& fill) {
  make_huge(memory, part, parts);
  fill(memory.raw(), part, parts);
}

/// Waits until every rank's part is ready, which gives signs of life meanwhile. Collective over all ranks of the job.
void wait_for_all(Communicator& world, std::future<void>* work) {
  const Tensor all_ready = host_tensor(DType::i32, {1});
  do {
    all_ready.data<std::int32_t>()[0] = !work || work->wait_for(sign_of_life) == std::future_status::ready;
    world.all_reduce(all_ready, Reduce::min);
  } while (!all_ready.data<std::int32_t>()[0]);
}

Outcome outcome_of(std::future<void>& work) {
  Outcome outcome;
  try {
    work.get();
    outcome.done = 1;
  } catch (const std::exception& e) {
    if (const auto* error = dynamic_cast<const Error*>(&e)) outcome.fault = static_cast<std::int64_t>(error->fault());
    std::strncpy(outcome.message, e.what(), sizeof outcome.message - 1);
  }
  return outcome;
}

/// The file at the place, or fd = -1. Another container's process of the same number has another file.
int open_file(const Place& place) {
  const int fd = open(fmt::format("/proc/{}/fd/{}", place.pid, place.fd).c_str(), O_RDWR | O_CLOEXEC);
  struct stat found = {};
  if (fd < 0) return -1;
  if (fstat(fd, &found) == 0 && static_cast<std::int64_t>(found.st_dev) == place.device && static_cast<std::int64_t>(found.st_ino) == place.inode) {
    return fd;
  }
  close(fd);
  return -1;
}

/// The first host's bytes into the other hosts' memory, from first rank to first rank; a host's other ranks, whose `memory` is undefined, wait for
/// one piece after another.
void pass_on(ProcessGroup& group, const Tensor& memory, std::int64_t bytes) {
  constexpr std::int64_t piece = std::int64_t{16} << 20;
  for (std::int64_t done = 0; done < bytes; done += piece) {
    if (memory.defined()) {
      const Tensor part = memory.slice(done, std::min(done + piece, bytes));
      if (!group.on_first_host()) make_huge(part, 0, 1);
      group.first_of_hosts().broadcast(part, 0);
    }
    group.host().barrier();
  }
}

Tensor fill_alone(ProcessGroup& group, std::int64_t bytes, const Fill& fill, Filled filled) {
  const Tensor own = map(no_file, bytes, PROT_READ | PROT_WRITE);
  work_on_host(group, 1, [&](int) {
    fill(own.raw(), 0, 1);  // takes the pages, on all its threads and near them; huge ones already on most systems
    make_huge(own, 0, 1);
  }, filled);
  if (filled == Filled::by_first_host) pass_on(group, own, bytes);
  if (mprotect(own.raw(), static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1)), PROT_READ) != 0) fail_with_errno("mprotect", bytes);
  return own;
}

}  // namespace

bool can_share_huge_pages() {
  const File file(memfd_create("kvmesh", MFD_CLOEXEC));
  return file.fd >= 0 && ftruncate(file.fd, huge_page) == 0 && make_huge(map(file.fd, huge_page, PROT_READ | PROT_WRITE), 0, 1);
}

std::shared_ptr<void> map_file(int fd, std::int64_t bytes, int protection) {
  constexpr auto huge = static_cast<std::size_t>(huge_page);
  const auto length = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
  void* const room = mmap(nullptr, length + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return nullptr;
  std::shared_ptr<void> freed(room, [length](void* q) { munmap(q, length + huge); });
  void* const aligned = reinterpret_cast<void*>((reinterpret_cast<std::uintptr_t>(room) + huge - 1) / huge * huge);
  const int kind = fd == no_file ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  if (mmap(aligned, length, protection, kind | MAP_FIXED, fd, 0) == MAP_FAILED) return nullptr;
  madvise(aligned, length, MADV_HUGEPAGE);
  return {std::move(freed), aligned};
}

void work_on_host(ProcessGroup& group, int parts, const std::function<void(int part)>& work, Filled filled) {
  const int part = group.local_rank();
  const bool works = part < parts && (filled == Filled::by_every_host || group.on_first_host());
  Communicator& told = filled == Filled::by_every_host ? group.host() : group.world();
  std::future<void> done;
  if (works) done = std::async(std::launch::async, [&] { work(part); });
  wait_for_all(group.world(), done.valid() ? &done : nullptr);
  Outcome outcome{.done = 1};
  if (done.valid()) outcome = outcome_of(done);
  const std::int64_t failed = least(told, outcome.done ? told.size() : told.rank());
  if (failed == told.size()) return;
  told.broadcast(bytes_of(outcome), static_cast<int>(failed));
  throw Error(static_cast<Fault>(outcome.fault), outcome.message);
}

Tensor share_on_host(ProcessGroup& group, std::int64_t bytes, const Fill& fill, Filled filled) {
  check(bytes >= 0, "shared memory cannot have {} bytes", bytes);
  Communicator& host = group.host();
  if (host.size() == 1) return fill_alone(group, bytes, fill, filled);
  Place place;
  File file(-1);
  if (host.rank() == 0) {
    file.fd = memfd_create("kvmesh", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat self = {};
    if (file.fd < 0 || fstat(file.fd, &self) != 0) fail_with_errno("memfd_create", bytes);
    if (ftruncate(file.fd, static_cast<off_t>(std::max<std::int64_t>(bytes, 1))) != 0) fail_with_errno("ftruncate", bytes);
    place = {getpid(), file.fd, static_cast<std::int64_t>(self.st_dev), static_cast<std::int64_t>(self.st_ino)};
  }
  host.broadcast(bytes_of(place), 0);
  if (host.rank() != 0) file.fd = open_file(place);
  const bool all_opened = least(host, file.fd >= 0);

  const int parts = all_opened ? host.size() : 1;
  work_on_host(group, parts, [&](int part) { fill_part(map(file.fd, bytes, PROT_READ | PROT_WRITE), part, parts, fill); }, filled);
  if (filled == Filled::by_first_host) pass_on(group, host.rank() == 0 ? map(file.fd, bytes, PROT_READ | PROT_WRITE) : Tensor(), bytes);
  if (host.rank() == 0 && fcntl(file.fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) fail_with_errno("sealing", bytes);
  host.barrier();  // mapped only when it is sealed
  if (all_opened) return map(file.fd, bytes, PROT_READ);
  const Tensor own = host.rank() == 0 ? map(file.fd, bytes, PROT_READ) : host_tensor(DType::u8, {bytes});
  host.broadcast(own, 0);
  return own;
}

}  // namespace kvmesh
