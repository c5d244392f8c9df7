// The tree's sum on 1 to 4 ranks: the bits of a plain recursion, for every number of terms, of numbers whose sums round.
#include "tests/comm/mpi_main.h"

#include "comm/tree_sum.h"

#include <gmock/gmock-matchers.h>

#include <cmath>
#include <cstring>
#include <limits>

namespace kvmesh {
namespace {

using testing::group;

/// Element j of term i: of many magnitudes and both signs, so that every other order of adding gives other bits somewhere.
float element(std::int64_t i, std::int64_t j) {
  const auto x = static_cast<std::uint32_t>(i * 2654435761 + j * 40503 + 12345) * 2246822519u;
  return std::ldexp(static_cast<float>(static_cast<std::int32_t>(x ^ x >> 15)), static_cast<int>(x % 13) - 30);
}

/// The node over the leaves [begin, begin + width) below `terms`; `width` is a power of two.
float naive(std::int64_t terms, std::int64_t begin, std::int64_t width, std::int64_t j) {
  if (width == 1) return element(begin, j);
  const float left = naive(terms, begin, width / 2, j);
  return begin + width / 2 < terms ? left + naive(terms, begin + width / 2, width / 2, j) : left;
}

std::vector<float> naive_sum(std::int64_t terms, Range elements) {
  std::int64_t width = 1;
  while (width < terms) width *= 2;
  std::vector<float> sum;
  for (std::int64_t j = elements.begin; j < elements.end; ++j) sum.push_back(naive(terms, 0, width, j));
  return sum;
}

bool equal(std::span<const float> a, std::span<const float> b) { return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0); }

void give_terms(TreeSum& sum, std::int64_t size) {
  for (std::int64_t i = sum.own_terms().begin; i < sum.own_terms().end; ++i) {
    const Tensor term = sum.next();
    for (std::int64_t j = 0; j < size; ++j) term.data<float>()[j] = element(i, j);
    sum.push();
  }
}

TEST(TreeSum, IsTheRecursionsToTheBit) {
  Communicator& world = group->world();
  const int ranks = world.size(), rank = world.rank();
  for (const std::int64_t size : {1, 3, 250}) {
    for (std::int64_t terms = 1; terms <= 13; ++terms) {
      TreeSum sum(world, terms, size, TreeSum::add, 32);  // several chunks
      EXPECT_EQ(sum.own_terms(), split(terms, ranks, rank));
      std::vector<Range> even, uneven;  // the latter leave out some elements and repeat others
      for (int r = 0; r < ranks; ++r) {
        even.push_back(split(size, ranks, r));
        uneven.push_back(r == 0 ? Range{size / 2, size / 2} : Range{size / 3, size - r / 2});
      }
      for (const auto& owned : {even, uneven, even}) {  // it can be used again
        const Range own = owned[static_cast<std::size_t>(rank)];
        const Tensor out = host_tensor(DType::f32, {own.size()});
        give_terms(sum, size);
        sum.reduce_scatter(owned, out);
        EXPECT_TRUE(equal(out.span<float>(), naive_sum(terms, own))) << terms << " terms of " << size;
      }
    }
  }
}

// Adding from left to right gives other bits: the test above can tell.
TEST(TreeSum, IsNoSumFromLeftToRight) {
  std::vector<float> plain;
  for (std::int64_t j = 0; j < 250; ++j) {
    float sum = element(0, j);
    for (std::int64_t i = 1; i < 13; ++i) sum += element(i, j);
    plain.push_back(sum);
  }
  EXPECT_FALSE(equal(plain, naive_sum(13, {0, 250})));
}

TEST(TreeSum, TheAddIsTheCallers) {
  Communicator& world = group->world();
  int calls = 0;
  TreeSum sum(world, 4 * world.size(), 8, [&](std::span<float> left, std::span<const float> right) { ++calls, TreeSum::add(left, right); });
  give_terms(sum, 8);
  EXPECT_EQ(calls, 3) << "a rank's four terms are one node";
}

TEST(TreeSum, KeepsNanAndInfinity) {
  Communicator& world = group->world();
  TreeSum sum(world, 7, 3);
  for (std::int64_t i = sum.own_terms().begin; i < sum.own_terms().end; ++i) {
    float* const term = sum.next().data<float>();
    term[0] = i == 3 ? std::nanf("") : 1.0f;
    term[1] = i == 5 ? std::numeric_limits<float>::infinity() : 1.0f;
    term[2] = 1.0f;
    sum.push();
  }
  const Tensor out = host_tensor(DType::f32, {3});
  sum.reduce_scatter(std::vector<Range>(static_cast<std::size_t>(world.size()), Range{0, 3}), out);
  EXPECT_TRUE(std::isnan(out.data<float>()[0]));
  EXPECT_EQ(out.data<float>()[1], std::numeric_limits<float>::infinity());
  EXPECT_EQ(out.data<float>()[2], 7.0f);
}

template <typename Call>
void expect_error(Call call, const std::string& words) {
  try {
    call();
    ADD_FAILURE() << "no error that says: " << words;
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr(words));
  }
}

TEST(TreeSum, RefusesWhatCannotBe) {
  Communicator& world = group->world();
  const std::vector<Range> owned(static_cast<std::size_t>(world.size()), Range{0, 2});
  const Tensor out = host_tensor(DType::f32, {2});
  TreeSum sum(world, 4, 2);
  expect_error([&] { sum.reduce_scatter(owned, out); }, "gave 0 of its");
  give_terms(sum, 2);
  expect_error([&] { sum.push(); }, "one more");
  expect_error([&] { sum.reduce_scatter(owned, host_tensor(DType::f32, {3})); }, "do not go into float32[3]");
  expect_error([&] { sum.reduce_scatter(owned, host_tensor(DType::f64, {2})); }, "do not go into float64[2]");
  expect_error([&] { sum.reduce_scatter(std::vector<Range>(owned.size(), Range{1, 3}), out); }, "elements 1 to 3 of a sum of 2");
  expect_error([&] { sum.reduce_scatter(std::vector<Range>(owned.size() + 1, Range{0, 2}), out); }, "divided among");
  expect_error([&] { TreeSum(world, 0, 2); }, "a sum of 0 vectors");
  sum.reduce_scatter(owned, out);  // and it still works
  EXPECT_TRUE(equal(out.span<float>(), naive_sum(4, {0, 2})));
}

}  // namespace
}  // namespace kvmesh
