// The arithmetic of kvmesh scale against SciPy's numbers (stats.t.interval, stats.linregress, and the integral of order statistics).
#include "launch/scale_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace kvmesh {
namespace {

TEST(ScaleModel, Intervals) {
  const Estimate e = estimate(std::vector{3.1, 2.7, 3.9, 3.3, 2.9});
  EXPECT_NEAR(e.mean, 3.18, 1e-12);
  EXPECT_NEAR(e.half_width, 0.5717050381974045, 1e-4);
  const Estimate two = estimate(std::vector{1.0, 2.0});
  EXPECT_NEAR(two.half_width, 12.706204736174694 / 2, 1e-3);
  EXPECT_TRUE(std::isinf(estimate(std::vector{1.0}).half_width));
  for (const auto& [n, t] : {std::pair{22, 2.0796138447276795}, {41, 2.021075390306273}, {201, 1.9718962236339088}}) {  // beyond the table; n alternating values
    std::vector<double> values;
    for (int i = 0; i < n; ++i) values.push_back(i % 2 ? 1.0 : -1.0);
    const double mean = n % 2 ? -1.0 / n : 0, deviation = std::sqrt((n - n * mean * mean) / (n - 1));
    EXPECT_NEAR(estimate(values).half_width * std::sqrt(n) / deviation / t, 1, 0.003) << n;
  }
}

TEST(ScaleModel, RatiosOfEstimates) {
  const Estimate r = ratio({6, 0.6}, {3, 0.4}, 0.5);
  EXPECT_NEAR(r.mean, 1, 1e-12);
  EXPECT_NEAR(r.half_width, std::hypot(0.1, 0.4 / 3), 1e-12);
}

TEST(ScaleModel, Lines) {
  const Line line = fit_line(std::vector{1.0, 2.0, 4.0, 8.0, 16.0}, std::vector{0.9, 1.35, 2.1, 4.4, 8.0});
  EXPECT_NEAR(line.slope, 0.479502688172043, 1e-12);
  EXPECT_NEAR(line.at_zero, 0.3770833333333332, 1e-12);
  EXPECT_NEAR(fit_line(std::vector{3.0}, std::vector{5.0}).at(7), 5, 1e-12);
}

TEST(ScaleModel, TheLargestOfMany) {
  EXPECT_EQ(expected_largest(1), 0);
  for (const auto& [n, exact] : {std::pair{2, 0.5641895835477566}, {4, 1.029375373003964}, {16, 1.7659913930547884}, {100, 2.507593636441689}, {4096, 3.626082177769237}})
    EXPECT_NEAR(expected_largest(n), exact, 0.03) << n;
}

TEST(ScaleModel, WhatARunCosts) {
  const CostModel model{.prefill = {1, 2}, .step = {0.5, 0.25}, .contention = 0.1, .latency = 0.01, .jitter = 0.02, .round = 4};
  const CostModel::Parts one = model.predict(1, 1, 4, 12), five = model.predict(5, 3, 4, 12);
  EXPECT_NEAR(one.seconds(), 1 + 8 + 12 * 1.5, 1e-12);
  EXPECT_NEAR(five.compute, one.compute * 1.2, 1e-12);
  EXPECT_NEAR(five.collectives, 3 * 0.01 * 3, 1e-12);
  EXPECT_NEAR(five.idle, 3 * 0.02 * 2 * expected_largest(5), 1e-12);
}

}  // namespace
}  // namespace kvmesh
