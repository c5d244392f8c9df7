// Memory that the ranks of one host share: a sealed, unnamed memory file of the host's first rank that the others open through /proc.
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

/// What the first rank tells the others; one broadcast.
struct Notice {
  std::int64_t done = 0;  // else it failed
  std::int64_t fault = static_cast<std::int64_t>(Fault::rank);
  std::int64_t pid = 0, fd = -1, device = 0, inode = 0;
  char message[976] = "";
};

Tensor bytes_of(Notice& notice) { return {nullptr, &notice, DType::u8, {sizeof notice}}; }

[[noreturn]] void fail_with_errno(const char* what, std::int64_t bytes) {
  fail(Fault::rank, "shared memory of {} bytes: {}: {}", bytes, what, std::strerror(errno));
}

/// Read-only pages of the file.
Tensor map(int fd, std::int64_t bytes) {
  const auto length = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
  void* p = mmap(nullptr, length, PROT_READ, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) fail_with_errno("mmap", bytes);
  madvise(p, length, MADV_HUGEPAGE);
  return {std::shared_ptr<void>(p, [length](void* q) { munmap(q, length); }), p, DType::u8, {bytes}};
}

/// The first rank's part: the file, filled and sealed.
void fill_file(int fd, std::int64_t bytes, const std::function<void(void*)>& fill) {
  const auto length = static_cast<std::size_t>(std::max<std::int64_t>(bytes, 1));
  if (ftruncate(fd, static_cast<off_t>(length)) != 0) fail_with_errno("ftruncate", bytes);
  void* p = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) fail_with_errno("mmap", bytes);
  madvise(p, length, MADV_HUGEPAGE);
  {
    const std::shared_ptr<void> writable(p, [length](void* q) { munmap(q, length); });
    fill(p);
  }
  if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) fail_with_errno("sealing", bytes);
}

/// Waits until every host's first rank is ready, which gives signs of life meanwhile. Collective over all ranks of the job.
void wait_for_all(Communicator& world, std::future<void>* filled) {
  const Tensor all_ready = host_tensor(DType::i32, {1});
  do {
    all_ready.data<std::int32_t>()[0] = !filled || filled->wait_for(sign_of_life) == std::future_status::ready;
    world.all_reduce(all_ready, Reduce::min);
  } while (!all_ready.data<std::int32_t>()[0]);
}

/// How the first rank's part went.
void conclude(std::future<void>& filled, Notice& notice) {
  try {
    filled.get();
    notice.done = 1;
  } catch (const std::exception& e) {
    if (const auto* error = dynamic_cast<const Error*>(&e)) notice.fault = static_cast<std::int64_t>(error->fault());
    std::strncpy(notice.message, e.what(), sizeof notice.message - 1);
  }
}

/// The file that the notice names, or fd = -1. Another container's process of the same number has another file.
int open_file(const Notice& notice) {
  const int fd = open(fmt::format("/proc/{}/fd/{}", notice.pid, notice.fd).c_str(), O_RDONLY | O_CLOEXEC);
  struct stat found = {};
  if (fd < 0) return -1;
  if (fstat(fd, &found) == 0 && static_cast<std::int64_t>(found.st_dev) == notice.device && static_cast<std::int64_t>(found.st_ino) == notice.inode) {
    return fd;
  }
  close(fd);
  return -1;
}

}  // namespace

Tensor share_on_host(ProcessGroup& group, std::int64_t bytes, const std::function<void(void*)>& fill) {
  check(bytes >= 0, "shared memory cannot have {} bytes", bytes);
  Communicator& host = group.host();
  Notice notice;
  File file(-1);
  if (host.rank() == 0) {
    file.fd = memfd_create("kvmesh", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    struct stat self = {};
    if (file.fd < 0 || fstat(file.fd, &self) != 0) fail_with_errno("memfd_create", bytes);
    notice.pid = getpid();
    notice.fd = file.fd;
    notice.device = static_cast<std::int64_t>(self.st_dev);
    notice.inode = static_cast<std::int64_t>(self.st_ino);
    std::future<void> filled = std::async(std::launch::async, [&] { fill_file(file.fd, bytes, fill); });
    wait_for_all(group.world(), &filled);
    conclude(filled, notice);
  } else {
    wait_for_all(group.world(), nullptr);
  }
  host.broadcast(bytes_of(notice), 0);
  if (host.rank() != 0 && notice.done) file.fd = open_file(notice);
  if (!notice.done) throw Error(static_cast<Fault>(notice.fault), notice.message);

  const Tensor all_opened = host_tensor(DType::i32, {1});
  all_opened.data<std::int32_t>()[0] = file.fd >= 0;
  host.all_reduce(all_opened, Reduce::min);  // from here on the first rank may close its file
  if (all_opened.data<std::int32_t>()[0]) return map(file.fd, bytes);
  const Tensor own = host.rank() == 0 ? map(file.fd, bytes) : host_tensor(DType::u8, {bytes});
  host.broadcast(own, 0);
  return own;
}

}  // namespace kvmesh
