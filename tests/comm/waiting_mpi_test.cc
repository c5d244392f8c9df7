// Ranks that do not come, and ranks that disagree: every other rank hears of it.
#include "tests/comm/mpi_main.h"

#include "comm/agreement.h"
#include "comm/mpi.h"

#include <gmock/gmock-matchers.h>

#include <vector>

namespace kvmesh {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::group;

// The late rank stays away until all others have given up: they tell it through a communicator that is more patient.
TEST(Deadline, RanksThatWaitInVainGiveUpAndSayWhere) {
  Communicator& world = group->world();
  if (world.size() == 1) GTEST_SKIP() << "nobody to wait for";
  const std::vector<std::pair<const char*, std::function<void(Communicator&)>>> collectives = {
      {"barrier", [](Communicator& c) { c.barrier(); }},
      {"all_gather", [](Communicator& c) { c.all_gather(host_tensor(DType::i32, {3}), host_tensor(DType::i32, {c.size(), 3})); }},
      {"broadcast", [](Communicator& c) { c.broadcast(host_tensor(DType::u8, {5}), c.size() - 1); }}};
  for (const auto& [name, call] : collectives) {
    const auto deadline = std::make_shared<Deadline>(Deadline{Seconds(0.3)});
    Communicator* const impatient = make_mpi_communicator(Ranks::all, deadline).release();  // never freed: MPI may still use it
    const bool late = world.rank() == world.size() - 1;
    if (!late) {
      try {
        call(*impatient);
        ADD_FAILURE() << name << " came back without rank " << world.size() - 1;
      } catch (const Error& e) {
        EXPECT_EQ(e.fault(), Fault::rank);
        EXPECT_THAT(e.what(), AllOf(HasSubstr(name), HasSubstr("rank " + std::to_string(world.rank()) + " of"), HasSubstr("waited 0.")));
      }
      EXPECT_TRUE(deadline->passed);
      EXPECT_THROW(impatient->barrier(), Error) << "at once: the communicator can only be dropped";
    }
    world.barrier();
    if (late) {
      deadline->seconds = Seconds(30);
      call(*impatient);  // the others have sent their part: nothing stays open
    }
    world.barrier();
  }
}

TEST(Agreement, EqualHashesPass) {
  for (const std::uint64_t hash : {std::uint64_t{0}, ~std::uint64_t{0}}) check_agreement(group->world(), hash, "step 3: the tokens");
}

std::string disagreement(const std::vector<std::uint64_t>& hashes, Fault& fault) {
  try {
    check_agreement(group->world(), hashes[static_cast<std::size_t>(group->rank())], "step 3: the tokens");
  } catch (const Error& e) {
    fault = e.fault();
    return e.what();
  }
  return "no error";
}

TEST(Agreement, TheRankThatDiffersIsNamedOnEveryRank) {
  const int n = group->size();
  if (n == 1) GTEST_SKIP() << "nobody to differ from";
  for (int odd = n == 2 ? 1 : 0; odd < n; ++odd) {  // of two ranks that differ the second is named
    std::vector<std::uint64_t> hashes(static_cast<std::size_t>(n), 7);
    hashes[static_cast<std::size_t>(odd)] = std::uint64_t{7} | std::uint64_t{1} << 63;
    Fault fault = Fault::usage;
    EXPECT_EQ(disagreement(hashes, fault), "step 3: the tokens differ between ranks: rank " + std::to_string(odd) + " against the others");
    EXPECT_EQ(fault, Fault::rank);
  }
}

TEST(Agreement, TheMajorityIsRight) {
  if (group->size() != 4) GTEST_SKIP() << "needs 4 ranks";
  Fault fault = Fault::usage;
  EXPECT_EQ(disagreement({5, 6, 7, 6}, fault), "step 3: the tokens differ between ranks: rank 0, 2 against the others");
  EXPECT_EQ(disagreement({5, 5, 6, 6}, fault), "step 3: the tokens differ between ranks: rank 2, 3 against the others");  // from rank 0, where there is none
  EXPECT_EQ(disagreement({1, 2, 3, 4}, fault), "step 3: the tokens differ between ranks: rank 1, 2, 3 against the others");
}

TEST(ProcessGroup, AllArriveOnceAllHaveCome) { EXPECT_TRUE(group->all_arrive(std::chrono::seconds(20))); }

}  // namespace
}  // namespace kvmesh
