// Sums of vectors on 1 to 4 ranks. The tree's: the bits of a plain recursion, for every number of terms, of numbers whose sums round.
#include "tests/comm/mpi_main.h"

#include "comm/library_sum.h"
#include "comm/mpi.h"
#include "comm/tree_sum.h"

#include <gmock/gmock-matchers.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

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

void write_elements(const Tensor& term, std::int64_t i, Range elements) {
  for (std::int64_t j = elements.begin; j < elements.end; ++j) term.data<float>()[j] = element(i, j);
}

/// Gives a rank's terms, the last one piece by piece, each only when it is its turn, and ends the sum.
void sum_up(VectorSum& sum, const SumPlan& plan, const Tensor& out) {
  for (std::int64_t i = sum.own_terms().begin; i + 1 < sum.own_terms().end; ++i) {
    write_elements(sum.next(), i, {0, plan.size});
    sum.push();
  }
  const Tensor last = sum.begin(out);
  EXPECT_EQ(last.defined(), sum.own_terms().size() > 0);
  if (last.defined()) std::fill(last.span<float>().begin(), last.span<float>().end(), std::nanf(""));  // what goes out too early
  for (const Range& piece : plan.pieces) {
    if (!last.defined()) break;
    write_elements(last, sum.own_terms().end - 1, piece);
    sum.complete(piece);
  }
  sum.finish();
}

/// From the vector's end to its beginning, as a backward pass completes it; 7 elements are a matrix.
std::vector<Range> pieces_of(std::int64_t size) {
  std::vector<Range> pieces;
  for (std::int64_t end = size; end > 0; end -= 7) pieces.push_back({std::max<std::int64_t>(0, end - 7), end});
  return pieces;
}

TEST(TreeSum, IsTheRecursionsToTheBit) {
  Communicator& world = group->world();
  const int ranks = world.size();
  for (const std::int64_t size : {1, 3, 250}) {
    for (std::int64_t terms = 1; terms <= 13; ++terms) {
      std::vector<std::vector<Range>> even, uneven, two;  // uneven: leaves out some elements and repeats others
      for (int r = 0; r < ranks; ++r) {
        even.push_back({split(size, ranks, r)});
        uneven.push_back({r == 0 ? Range{size / 2, size / 2} : Range{size / 3, size - r / 2}});
        const std::int64_t middle = size - size / 14 * 7;  // between two pieces
        two.push_back({split(middle, ranks, r), split(size - middle, ranks, ranks - 1 - r)});
        two.back()[1] = {two.back()[1].begin + middle, two.back()[1].end + middle};
      }
      for (const auto& [pieces, owned] : {std::pair{std::vector<Range>{{0, size}}, even}, {pieces_of(size), uneven}, {pieces_of(size), two}, {pieces_of(size), even}}) {
        const SumPlan plan{terms, size, pieces, owned};
        const std::vector<Range>& own = owned[static_cast<std::size_t>(world.rank())];
        std::vector<float> expected;
        for (const Range& range : own) {
          for (const float x : naive_sum(terms, range)) expected.push_back(x);
        }
        TreeSum sum(world, plan, TreeSum::add, 4);  // several chunks a piece
        EXPECT_EQ(sum.own_terms(), split(terms, ranks, world.rank()));
        for (int again = 0; again < 2; ++again) {
          const Tensor out = host_tensor(DType::f32, {size_of(own)});
          sum_up(sum, plan, out);
          EXPECT_TRUE(equal(out.span<float>(), expected)) << terms << " terms of " << size;
        }
      }
    }
  }
}

// All pieces but the last are sent while the slowest rank still computes: it finds them where it asks, before it ends the sum.
TEST(TreeSum, GoesOnBehindTheCallersBack) {
  Communicator& world = group->world();
  if (world.size() == 1) GTEST_SKIP() << "nothing to exchange";
  const std::int64_t size = 70;
  const SumPlan plan{2 * world.size(), size, pieces_of(size), std::vector<std::vector<Range>>(static_cast<std::size_t>(world.size()), {Range{0, 7}, Range{7, size}})};
  TreeSum sum(world, plan);
  const Tensor out = host_tensor(DType::f32, {size});
  std::fill(out.span<float>().begin(), out.span<float>().end(), -1.0f);
  write_elements(sum.next(), sum.own_terms().begin, {0, size});
  sum.push();
  const Tensor last = sum.begin(out);
  write_elements(last, sum.own_terms().begin + 1, {0, size});
  for (const Range& piece : plan.pieces) {
    if (piece.begin > 0) sum.complete(piece);
  }
  const auto begun = std::chrono::steady_clock::now();
  const volatile float* const there = out.data<float>();
  while (there[7] == -1 && std::chrono::steady_clock::now() - begun < std::chrono::seconds(10)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_NE(there[7], -1) << "nothing comes before finish()";
  EXPECT_EQ(there[0], -1) << "this is not complete";
  sum.finish();
  EXPECT_TRUE(equal(out.span<float>(), naive_sum(plan.terms, {0, size})));
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

SumPlan whole_for_all(std::int64_t terms, std::int64_t size) {
  return {terms, size, {{0, size}}, std::vector<std::vector<Range>>(static_cast<std::size_t>(group->size()), {Range{0, size}})};
}

TEST(TreeSum, TheAddIsTheCallers) {
  Communicator& world = group->world();
  int calls = 0;
  const SumPlan plan = whole_for_all(4 * world.size(), 8);
  TreeSum sum(world, plan, [&](std::span<float> left, std::span<const float> right) { ++calls, TreeSum::add(left, right); });
  for (int i = 0; i < 3; ++i) {
    write_elements(sum.next(), i, {0, 8});
    sum.push();
  }
  EXPECT_EQ(calls, 1) << "the first two are one node";
  const Tensor out = host_tensor(DType::f32, {8});
  write_elements(sum.begin(out), 3, {0, 8});
  sum.complete(plan.pieces[0]);
  EXPECT_EQ(calls, 3) << "a rank's four terms are one node";
  sum.finish();
}

void expect_nan_and_infinity(VectorSum& sum) {
  const Tensor out = host_tensor(DType::f32, {3});
  for (std::int64_t i = sum.own_terms().begin; i < sum.own_terms().end; ++i) {
    const bool last = i + 1 == sum.own_terms().end;
    float* const term = (last ? sum.begin(out) : sum.next()).data<float>();
    term[0] = i == 3 ? std::nanf("") : 1.0f;
    term[1] = i == 5 ? std::numeric_limits<float>::infinity() : 1.0f;
    term[2] = 1.0f;
    if (!last) sum.push();
  }
  sum.finish();
  EXPECT_TRUE(std::isnan(out.data<float>()[0]));
  EXPECT_EQ(out.data<float>()[1], std::numeric_limits<float>::infinity());
  EXPECT_EQ(out.data<float>()[2], 7.0f);
}

TEST(TreeSum, KeepsNanAndInfinity) {
  TreeSum sum(group->world(), whole_for_all(7, 3));
  expect_nan_and_infinity(sum);
}

TEST(LibrarySum, KeepsNanAndInfinity) {
  LibrarySum sum(group->world(), whole_for_all(7, 3));
  expect_nan_and_infinity(sum);
}

// Its order is the library's: as near as float32 is, whatever it was, and again the next time.
TEST(LibrarySum, IsTheSum) {
  Communicator& world = group->world();
  for (const std::int64_t terms : {1, 2, 7, 13}) {
    SumPlan plan{terms, 250, pieces_of(250), {}};
    for (int r = 0; r < world.size(); ++r) {
      const Range head = split(40, world.size(), r), rest = split(210, world.size(), r);
      plan.owned.push_back({head, {40 + rest.begin, 40 + rest.end}});
    }
    LibrarySum sum(world, plan);
    const std::vector<Range>& own = plan.owned[static_cast<std::size_t>(world.rank())];
    for (int again = 0; again < 2; ++again) {
      const Tensor out = host_tensor(DType::f32, {size_of(own)});
      sum_up(sum, plan, out);
      std::size_t at = 0;
      for (const Range& range : own) {
        for (std::int64_t j = range.begin; j < range.end; ++j, ++at) {
          double exact = 0, most = 0;
          for (std::int64_t i = 0; i < terms; ++i) {
            exact += static_cast<double>(element(i, j));
            most += std::abs(static_cast<double>(element(i, j)));
          }
          EXPECT_NEAR(static_cast<double>(out.data<float>()[at]), exact, 1e-6 * most) << terms << " terms, element " << j;
        }
      }
    }
  }
}

// The last rank does not come before all others have given up; in the middle of an exchange that has begun behind their backs.
TEST(TreeSum, ARankThatDoesNotComeIsNamed) {
  Communicator& world = group->world();
  if (world.size() == 1) GTEST_SKIP() << "nobody to wait for";
  const auto deadline = std::make_shared<Deadline>(Deadline{Seconds(0.3)});
  Communicator* const impatient = make_mpi_communicator(Ranks::all, deadline).release();  // never freed: MPI may still use it
  const SumPlan plan{world.size(), 70, pieces_of(70), std::vector<std::vector<Range>>(static_cast<std::size_t>(world.size()), {Range{0, 70}})};
  const bool late = world.rank() == world.size() - 1;
  const Tensor out = host_tensor(DType::f32, {70});
  if (!late) {
    TreeSum sum(*impatient, plan);
    write_elements(sum.begin(out), sum.own_terms().begin, {0, 70});
    for (std::size_t i = 0; i < 3; ++i) sum.complete(plan.pieces[i]);
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // it computes: longer than the deadline is no reason to give up
    try {
      sum.finish();
      ADD_FAILURE() << "came back without rank " << world.size() - 1;
    } catch (const Error& e) {
      EXPECT_EQ(e.fault(), Fault::rank);
      EXPECT_THAT(e.what(), ::testing::AllOf(::testing::HasSubstr("exchange: rank " + std::to_string(world.rank()) + " of"), ::testing::HasSubstr("waited 0."),
                                             ::testing::HasSubstr(std::to_string(world.size() - 1) + ", which does not answer")));
    }
    EXPECT_TRUE(deadline->passed);
    EXPECT_THROW(impatient->barrier(), Error) << "at once: the communicator can only be dropped";
  }
  world.barrier();
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

template <typename Sum>
void expect_refusals() {
  Communicator& world = group->world();
  const std::int64_t terms = 4 * world.size();
  const Tensor out = host_tensor(DType::f32, {2});
  const SumPlan plan = whole_for_all(terms, 2);
  Sum sum(world, plan);
  expect_error([&] { sum.begin(out); }, "gave 0 of its");
  for (std::int64_t i = 0; i < 3; ++i) {
    write_elements(sum.next(), sum.own_terms().begin + i, {0, 2});
    sum.push();
  }
  expect_error([&] { sum.push(); }, "one more");
  expect_error([&] { sum.begin(host_tensor(DType::f32, {3})); }, "do not go into float32[3]");
  expect_error([&] { sum.begin(host_tensor(DType::f64, {2})); }, "do not go into float64[2]");
  const auto changed = [&](auto change) {
    SumPlan other = plan;
    change(other);
    return [&world, other] { Sum(world, other); };
  };
  expect_error(changed([](SumPlan& p) { p.owned[0][0] = {1, 3}; }), "elements 1 to 3 of a sum of 2");
  expect_error(changed([](SumPlan& p) { p.pieces[0] = {-1, 2}; }), "elements -1 to 2 of a sum of 2");
  expect_error(changed([](SumPlan& p) { p.owned.emplace_back(); }), "divided among");
  expect_error(changed([](SumPlan& p) { p.terms = 0; }), "a sum of 0 vectors");
  write_elements(sum.begin(out), sum.own_terms().begin + 3, {0, 2});  // and it still works
  expect_error([&] { sum.complete({0, 1}); }, "not the next");
  sum.finish();
  for (std::int64_t j = 0; j < 2; ++j) EXPECT_NEAR(out.data<float>()[j], naive_sum(terms, {0, 2})[static_cast<std::size_t>(j)], 1e-6f * 8192 * static_cast<float>(terms));
}

TEST(TreeSum, RefusesWhatCannotBe) { expect_refusals<TreeSum>(); }
TEST(LibrarySum, RefusesWhatCannotBe) { expect_refusals<LibrarySum>(); }

}  // namespace
}  // namespace kvmesh
