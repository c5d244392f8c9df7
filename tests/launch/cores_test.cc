// How many threads a host's ranks start, for bindings and cgroups as launchers make them.
#include "launch/job/cores.h"

#include <gmock/gmock-matchers.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <numeric>

namespace kvmesh {
namespace {

using ::testing::ElementsAre;

Cores on(int first, int count, std::string cgroup = "/", double quota = -1) {
  Cores cores{std::vector<int>(static_cast<std::size_t>(count)), std::move(cgroup), quota};
  std::iota(cores.cpus.begin(), cores.cpus.end(), first);
  return cores;
}

std::vector<int> threads(std::vector<Cores> processes) { return fair_threads(processes); }

TEST(Cores, UnboundRanksShareThem) {
  EXPECT_THAT(threads({on(0, 16)}), ElementsAre(16));
  EXPECT_THAT(threads({on(0, 16), on(0, 16), on(0, 16)}), ElementsAre(5, 5, 5));
  EXPECT_THAT(threads({on(0, 9), on(0, 9), on(0, 9)}), ElementsAre(3, 3, 3));  // thirds
  EXPECT_THAT(threads({on(0, 2), on(0, 2), on(0, 2), on(0, 2)}), ElementsAre(1, 1, 1, 1));
}

TEST(Cores, BoundRanksUseTheirOwn) {
  EXPECT_THAT(threads({on(0, 8), on(8, 8)}), ElementsAre(8, 8));
  EXPECT_THAT(threads({on(0, 1), on(1, 1), on(2, 1)}), ElementsAre(1, 1, 1));
  EXPECT_THAT(threads({on(0, 8), on(0, 8), on(8, 4)}), ElementsAre(4, 4, 4));
  EXPECT_THAT(threads({on(0, 4), on(2, 6)}), ElementsAre(3, 5));  // two cores for both
}

TEST(Cores, AQuotaIsSharedByItsCgroup) {
  EXPECT_THAT(threads({on(0, 16, "/a", 6), on(0, 16, "/a", 6)}), ElementsAre(3, 3));
  EXPECT_THAT(threads({on(0, 16, "/a", 6), on(0, 16, "/b", 2.5)}), ElementsAre(6, 2));
  EXPECT_THAT(threads({on(0, 16, "/a", 0.5)}), ElementsAre(1));
  EXPECT_THAT(threads({on(0, 2, "/a", 64)}), ElementsAre(2));
  EXPECT_THAT(threads({{}}), ElementsAre(1));  // nothing is known
}

TEST(Cores, OwnFollowTheBinding) {
  const Cores before = own_cores();
  ASSERT_FALSE(before.cpus.empty());
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<std::size_t>(before.cpus.back()), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_THAT(own_cores().cpus, ElementsAre(before.cpus.back()));
  EXPECT_EQ(own_cores().cgroup, before.cgroup);
}

}  // namespace
}  // namespace kvmesh
