// share_on_host: the same pages for all ranks of a host, each of which writes a part, then read-only, and errors that reach every rank.
#include "tests/comm/mpi_main.h"

#include <gmock/gmock-matchers.h>
#include <sys/mman.h>
#include <sys/utsname.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <sstream>
#include <thread>

namespace kvmesh {
namespace {

using ::testing::HasSubstr;
using testing::group;

struct Mapping {
  std::string permissions, device;
  std::int64_t inode = -1;
};

// Where `address` lies in this process, as the kernel tells it.
Mapping mapping_of(const void* address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::uintptr_t begin = 0, end = 0;
    std::istringstream in(line);
    in >> std::hex >> begin;
    in.get();
    in >> end;
    if (reinterpret_cast<std::uintptr_t>(address) < begin || reinterpret_cast<std::uintptr_t>(address) >= end) continue;
    Mapping m;
    std::string offset;
    in >> m.permissions >> offset >> m.device >> std::dec >> m.inode;
    return m;
  }
  return {};
}

// KiB in huge pages of the mapping in which `address` lies.
std::int64_t huge_kib(const void* address) {
  std::ifstream smaps("/proc/self/smaps");
  std::int64_t kib = 0;
  bool here = false;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream in(line);
    std::uintptr_t begin = 0, end = 0;
    char dash = 0;
    if (in >> std::hex >> begin >> dash >> end && dash == '-') here = begin <= reinterpret_cast<std::uintptr_t>(address) && reinterpret_cast<std::uintptr_t>(address) < end;
    if (here && (line.starts_with("AnonHugePages:") || line.starts_with("ShmemPmdMapped:"))) kib += std::stoll(line.substr(line.find(':') + 1));
  }
  return kib;
}

std::uint8_t byte_at(std::size_t i) { return static_cast<std::uint8_t>(i * 31 + i / 4096 + 5); }

/// This rank's part: every byte i with i % parts = part.
void fill(void* memory, std::size_t bytes, int part, int parts) {
  for (std::size_t i = static_cast<std::size_t>(part); i < bytes; i += static_cast<std::size_t>(parts)) static_cast<std::uint8_t*>(memory)[i] = byte_at(i);
}

TEST(SharedMemory, AllRanksReadWhatEachWrote) {
  for (const std::int64_t bytes : {0, 1, 4096, 3'000'001}) {
    int filled = 0;
    const Tensor shared = share_on_host(*group, bytes, [&](void* memory, int part, int parts) {
      ++filled;
      EXPECT_EQ(part, group->local_rank());
      EXPECT_EQ(parts, group->local_size());
      fill(memory, static_cast<std::size_t>(bytes), part, parts);
    });
    EXPECT_EQ(filled, 1);
    EXPECT_EQ(shared.dtype(), DType::u8);
    EXPECT_EQ(shared.shape(), Shape({bytes}));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(shared.raw()) % 4096, 0u);
    for (std::size_t i = 0; i < static_cast<std::size_t>(bytes); ++i) ASSERT_EQ(shared.data<std::uint8_t>()[i], byte_at(i)) << i;
  }
}

TEST(SharedMemory, ItIsTheSamePagesAndNobodyCanWriteThem) {
  const Tensor shared = share_on_host(*group, 10'000, [](void* memory, int part, int parts) { fill(memory, 10'000, part, parts); });
  const Mapping mine = mapping_of(shared.raw());
  if (group->local_size() == 1) {
    EXPECT_EQ(mine.permissions, "r--p") << "alone, in memory of its own";
    return;
  }
  EXPECT_EQ(mine.permissions, "r--s");
  const Tensor inode = host_tensor(DType::i64, {1}), inodes = host_tensor(DType::i64, {group->local_size(), 1});
  inode.data<std::int64_t>()[0] = mine.inode;
  group->host().all_gather(inode, inodes);
  for (const std::int64_t i : inodes.span<std::int64_t>()) EXPECT_EQ(i, mine.inode);
  EXPECT_GT(mine.inode, 0);
  EXPECT_NE(mprotect(shared.raw(), 4096, PROT_READ | PROT_WRITE), 0) << "it is sealed, not only mapped so";
}

// Linux from 6.1 on, unless the administrator denies it.
bool linux_makes_huge_pages() {
  utsname system = {};
  int major = 0, minor = 0;
  std::string enabled;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/shmem_enabled"), enabled);
  return uname(&system) == 0 && std::sscanf(system.release, "%d.%d", &major, &minor) == 2 && 100 * major + minor >= 601 && !enabled.empty() && enabled.find("[deny]") == std::string::npos;
}

TEST(SharedMemory, ItsPagesAreHuge) {
  if (!linux_makes_huge_pages()) GTEST_SKIP() << "this system makes no huge pages of memory that is shared";
  EXPECT_TRUE(can_share_huge_pages());
  constexpr std::size_t bytes = 16 << 20;
  const Tensor shared = share_on_host(*group, bytes, [](void* memory, int part, int parts) { fill(memory, bytes, part, parts); });
  for (std::size_t i = 0; i < bytes; ++i) ASSERT_EQ(shared.data<std::uint8_t>()[i], byte_at(i)) << i;
  EXPECT_GT(huge_kib(shared.raw()), 0);
}

TEST(SharedMemory, TwoAreNotOne) {
  const Tensor a = share_on_host(*group, 100, [](void* memory, int, int) { std::memset(memory, 1, 100); });
  const Tensor b = share_on_host(*group, 100, [](void* memory, int, int) { std::memset(memory, 2, 100); });
  EXPECT_EQ(a.data<std::uint8_t>()[99], 1);
  EXPECT_EQ(b.data<std::uint8_t>()[99], 2);
}

TEST(SharedMemory, ItLivesUntilItsLastTensorIsGone) {
  Tensor part;
  {
    const Tensor shared = share_on_host(*group, 9000, [](void* memory, int p, int parts) { fill(memory, 9000, p, parts); });
    part = shared.slice(8000, 8001);
  }
  group->host().barrier();
  EXPECT_EQ(part.data<std::uint8_t>()[0], byte_at(8000));
  const void* const address = part.raw();
  part = Tensor();
  EXPECT_EQ(mapping_of(address).inode, -1) << "and no longer";
}

template <typename Throw>
void expect_error_on_all_ranks(Fault fault, const std::string& message, Throw throw_it) {
  try {
    share_on_host(*group, 1000, [&](void*, int, int) { throw_it(); });
    ADD_FAILURE() << "no error on rank " << group->rank();
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), fault);
    EXPECT_THAT(e.what(), HasSubstr(message));
  }
  // and all ranks can go on together
  const Tensor after = share_on_host(*group, 3, [](void* memory, int, int) { std::memcpy(memory, "ok", 3); });
  EXPECT_STREQ(reinterpret_cast<const char*>(after.raw()), "ok");
}

TEST(SharedMemory, AnErrorOfOneRankReachesAll) {
  const int last = group->local_size() - 1;
  try {
    work_on_host(*group, group->local_size(), [&](int part) { check(part != last, "the last rank's part is torn"); });
    ADD_FAILURE() << "no error on rank " << group->rank();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("the last rank's part is torn"));
  }
  bool worked = false;
  work_on_host(*group, 1, [&](int) { worked = true; });
  EXPECT_EQ(worked, group->local_rank() == 0);
}

TEST(SharedMemory, AnErrorReachesAll) {
  expect_error_on_all_ranks(Fault::usage, "model.safetensors: tensor \"a\" is torn", [] { fail(Fault::usage, "model.safetensors: tensor \"a\" is torn"); });
  expect_error_on_all_ranks(Fault::io, "disk", [] { fail(Fault::io, "disk"); });
  expect_error_on_all_ranks(Fault::rank, "not ours", [] { throw std::runtime_error("not ours"); });
  expect_error_on_all_ranks(Fault::usage, "long", [] { fail(Fault::usage, "long {}", std::string(5000, 'g')); });  // cut short, not torn
}

// Loading may take longer than ranks wait for each other: the first rank gives signs of life.
TEST(SharedMemory, FillingMayTakeLongerThanTheDeadline) {
  group->set_deadline(std::chrono::milliseconds(1200));
  const Tensor shared = share_on_host(*group, 8, [](void* memory, int, int) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2000));
    std::memcpy(memory, "at last", 8);
  });
  group->set_deadline(std::chrono::seconds(30));
  EXPECT_STREQ(reinterpret_cast<const char*>(shared.raw()), "at last");
}

}  // namespace
}  // namespace kvmesh
