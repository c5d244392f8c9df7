// Which rank gets which GPU.
#include "comm/gpus.h"

#include "runtime/check.h"

#include <gmock/gmock-matchers.h>
#include <gtest/gtest.h>

namespace kvmesh {
namespace {

using Visible = std::vector<std::vector<std::string>>;

std::vector<int> indices(const Visible& visible, bool share = false) {
  std::vector<int> out;
  for (const GpuChoice& choice : choose_gpus(visible, share)) out.push_back(choice.index);
  return out;
}

std::vector<bool> shared(const Visible& visible) {
  std::vector<bool> out;
  for (const GpuChoice& choice : choose_gpus(visible, true)) out.push_back(choice.shared);
  return out;
}

std::string error_of(const Visible& visible, bool share) {
  try {
    choose_gpus(visible, share);
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), Fault::usage);
    return e.what();
  }
  return "no error";
}

TEST(Gpus, WhereAllRanksSeeAllTheyTakeTheirOwnNumber) {
  EXPECT_EQ(indices(Visible(4, {"a", "b", "c", "d"})), (std::vector{0, 1, 2, 3}));
  EXPECT_EQ(indices(Visible(2, {"a", "b", "c", "d"})), (std::vector{0, 1}));
}

TEST(Gpus, WhereASchedulerShowsEachRankItsOwnTheyTakeThat) {
  EXPECT_EQ(indices({{"a"}, {"b"}, {"c"}}), (std::vector{0, 0, 0}));
  EXPECT_EQ(indices({{"b", "a"}, {"b", "a"}, {"d", "c"}, {"d", "c"}}), (std::vector{0, 1, 0, 1}));
}

TEST(Gpus, MoreRanksThanGpusIsAnErrorThatNamesBoth) {
  EXPECT_EQ(error_of(Visible(3, {"a", "b"}), false), "3 ranks on this host, but 2 GPUs (2 seen by rank 2): start as many ranks as GPUs, or give --share-gpus");
  EXPECT_EQ(error_of({{"a"}, {"a"}}, false), "2 ranks on this host, but 1 GPU (1 seen by rank 1): start as many ranks as GPUs, or give --share-gpus");
}

TEST(Gpus, SharedGpusAreDealtOutEvenly) {
  EXPECT_EQ(indices(Visible(5, {"a", "b"}), true), (std::vector{0, 1, 0, 1, 0}));
  EXPECT_EQ(shared(Visible(5, {"a", "b"})), (std::vector{true, true, true, true, true}));
  EXPECT_EQ(shared(Visible(3, {"a", "b"})), (std::vector{true, false, true}));
  EXPECT_EQ(shared(Visible(2, {"a", "b"})), (std::vector{false, false}));
}

TEST(Gpus, ARankThatSeesNoneIsNamed) {
  EXPECT_EQ(error_of({{"a"}, {}}, true), "--device cuda: no GPU answers to rank 1 of this host's 2");
}

}  // namespace
}  // namespace kvmesh
