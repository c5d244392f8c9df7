// The arithmetic of kvmesh scale against SciPy's and NumPy's numbers (stats.t.interval, stats.linregress, and the integral of order statistics).
#include "launch/scale_fit.h"

#include <gtest/gtest.h>

#include <algorithm>
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

TEST(ScaleModel, Planes) {  // NumPy's lstsq of [a / y, b / y] against ones
  const std::vector a{1.0, 2.0, 1.0, 2.0, 3.0}, b{0.0, 1.0, 4.0, 12.0, 20.0}, y{2.1, 4.3, 2.9, 6.2, 10.4};
  const Plane plane = fit_plane(a, b, y);
  EXPECT_NEAR(plane.a_slope, 2.0811503367502846, 1e-12);
  EXPECT_NEAR(plane.b_slope, 0.19164361690496182, 1e-12);
  const Plane falls = fit_plane(a, b, std::vector{2.0, 3.9, 1.5, 2.0, 2.5});
  EXPECT_EQ(falls.b_slope, 0);
  EXPECT_NEAR(falls.a_slope, 1.1418890022041646, 1e-12);
  EXPECT_NEAR(fit_plane(std::vector{2.0}, std::vector{3.0}, std::vector{5.0}).a_slope, 2.5, 1e-12);  // one point: no bandwidth to be told
}

TEST(ScaleModel, TheMiddleOfMany) {  // numpy.quantile
  std::vector<double> values;
  for (int i = 0; i < 60; ++i) values.push_back((i * 37 % 60) * 0.5);
  const Interval middle = middle_95(values);
  EXPECT_NEAR(middle.low, 0.7375, 1e-12);
  EXPECT_NEAR(middle.high, 28.7625, 1e-12);
}

TEST(ScaleModel, TheLargestOfMany) {
  EXPECT_EQ(expected_largest(1), 0);
  for (const auto& [n, exact] : {std::pair{2, 0.5641895835477566}, {4, 1.029375373003964}, {16, 1.7659913930547884}, {100, 2.507593636441689}, {4096, 3.626082177769237}})
    EXPECT_NEAR(expected_largest(n), exact, 0.03) << n;
}

TEST(ScaleModel, WhatARunCosts) {
  const CostModel model{.prefill = {1, 2}, .step = {0.5, 0.25}, .contention = 0.1, .latency = 0.01, .seconds_per_byte = 1e-3, .bytes_per_row = 2, .bytes_per_rank = 5, .jitter = 0.02, .round = 4};
  const CostModel::Parts one = model.predict(1, 1, 4, 12), five = model.predict(5, 3, 4, 12);
  EXPECT_NEAR(one.seconds(), 1 + 8 + 12 * 1.5, 1e-12);
  EXPECT_NEAR(five.compute, one.compute * 1.2, 1e-12);
  EXPECT_NEAR(five.collectives, 3 * (0.01 * 3 + 4 * (5 + 4 * 4 * 2) * 1e-3), 1e-12);
  EXPECT_NEAR(five.idle, 3 * 0.02 * 2 * expected_largest(5), 1e-12);
}

// Runs that a known model would have given: the fit finds it again, and what is held out is predicted.
TEST(ScaleFit, FindsTheModelAgain) {
  const CostModel truth{.prefill = {0.5, 0.25}, .step = {0.03, 0.004}, .contention = 0.2, .latency = 2e-5, .seconds_per_byte = 1e-9, .jitter = 0.001};
  ScaleResults results;
  const auto add = [&](ScaleRun::Kind kind, int ranks, int on_host, std::int64_t rows) {
    ScaleRun run;
    run.kind = kind, run.ranks = ranks, run.on_host = on_host, run.rows = rows, run.steps = 40, run.tokens = static_cast<double>(rows) * 40, run.jitter = truth.jitter;
    const double busiest = std::ceil(static_cast<double>(rows) / ranks);
    run.seconds = truth.predict(ranks, on_host, busiest, run.steps).seconds();
    run.mean.prefill = truth.prefill.at(busiest);
    run.mean.decode = run.steps * truth.step.at(busiest);
    for (int repeat = 0; repeat < 3; ++repeat) results.runs.push_back(run);
  };
  for (const std::int64_t rows : {1, 2, 4, 8, 16}) add(ScaleRun::sweep, 1, 1, rows);
  for (const auto& [ranks, on_host] : {std::pair{1, 1}, {4, 2}, {8, 2}}) {
    add(ScaleRun::strong, ranks, on_host, 16);
    add(ScaleRun::weak, ranks, on_host, 4 * ranks);
  }
  for (const int ranks : {4, 8}) {
    for (const double bytes : {1024.0, 8192.0, 65536.0}) results.meetings.push_back({ranks, bytes, truth.latency * std::log2(ranks) + (ranks - 1) * bytes * truth.seconds_per_byte});
  }
  std::vector<ScalePoint> points = points_of(results.runs);
  const CostModel found = fit(points, results.meetings);
  EXPECT_NEAR(found.prefill.at_zero, truth.prefill.at_zero, 1e-9);
  EXPECT_NEAR(found.step.slope, truth.step.slope, 1e-9);
  EXPECT_NEAR(found.contention, truth.contention, 1e-9);
  EXPECT_NEAR(found.latency, truth.latency, 1e-12);
  EXPECT_NEAR(found.seconds_per_byte, truth.seconds_per_byte, 1e-15);
  int held_out = 0;
  for (const ScalePoint& p : points) {
    held_out += p.held_out;
    EXPECT_NEAR(p.predicted.seconds() / p.seconds.mean, 1, 1e-9) << p.ranks << " ranks, " << p.rows << " rows";
  }
  EXPECT_EQ(held_out, 6);  // the sweep's middle, all strong runs, weak ones on 1 and on the most ranks

  const std::vector<Extrapolated> more = extrapolate(results, 1024);
  ASSERT_EQ(more.size(), 6u);
  for (const Extrapolated& e : more) {  // without spread nothing is uncertain
    EXPECT_NEAR(e.weak.seconds(), truth.predict(e.ranks, std::min(e.ranks, 2), 4, 40).seconds(), 1e-9);
    EXPECT_NEAR(e.weak_interval.low, e.weak_efficiency, 1e-9);
    EXPECT_NEAR(e.strong_interval.high, e.strong_efficiency, 1e-9);
  }
  for (std::size_t i = 0; i < results.runs.size(); ++i) results.runs[i].mean.decode *= 0.9 + 0.1 * static_cast<double>(i % 3), results.runs[i].seconds *= 0.95 + 0.05 * static_cast<double>(i % 3);
  for (const Extrapolated& e : extrapolate(results, 64)) {
    if (e.ranks == 1) continue;
    EXPECT_LT(e.weak_interval.low, e.weak_interval.high) << e.ranks;
    EXPECT_LE(e.weak_interval.low, e.weak_efficiency);
    EXPECT_GE(e.weak_interval.high, e.weak_efficiency);
  }
}

}  // namespace
}  // namespace kvmesh
