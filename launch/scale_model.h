// The arithmetic of kvmesh scale: intervals, fits, and how long a run of so many ranks and rows should take. Seconds throughout.
#pragma once

#include <span>
#include <vector>

namespace kvmesh {

/// Mean of repeats and half the width of its 95 % confidence interval (Student's t); infinite for a single value.
struct Estimate {
  double mean = 0, half_width = 0;
};
Estimate estimate(std::span<const double> values);

/// scale · a / b of two independent estimates, the half widths by first-order propagation.
Estimate ratio(const Estimate& a, const Estimate& b, double scale = 1);

/// Least squares: y ≈ at_zero + slope · x. With one point, or points of one x, the slope is 0.
struct Line {
  double at_zero = 0, slope = 0;
  double at(double x) const { return at_zero + slope * x; }
};
Line fit_line(std::span<const double> x, std::span<const double> y);

/// Least squares of relative errors: y ≈ a_slope · a + b_slope · b, with slopes that are not negative; y > 0.
struct Plane {
  double a_slope = 0, b_slope = 0;
};
Plane fit_plane(std::span<const double> a, std::span<const double> b, std::span<const double> y);

/// The 2.5 % and 97.5 % quantiles of `values`.
struct Interval {
  double low = 0, high = 0;
};
Interval middle_95(std::vector<double> values);

/// The expected largest of n independent draws of a normal distribution, in standard deviations above its mean (Blom's approximation of order statistics).
double expected_largest(int n);

/// What a run costs: prompts and steps by rows on a rank, slower by `contention` for each other busy rank of a host; and a meeting of all ranks every `round` steps, of
/// latency · ⌈log₂ n⌉, what the others have to say of their rows, (n - 1) · bytes · seconds_per_byte, and the wait for the slowest of n ranks, whose steps differ independently by
/// `jitter` (standard deviation).
struct CostModel {
  Line prefill;           ///< of all of a rank's prompts, over its rows
  Line step;              ///< a decode step with its sampling, over its rows
  double contention = 0;
  double latency = 0;     ///< a meeting of two ranks that have nothing to say
  double seconds_per_byte = 0;
  double bytes_per_row = 8;   ///< and step: token and finish
  double bytes_per_rank = 64; ///< and meeting
  double jitter = 0;
  double round = 4;       ///< GenerateOptions::sync_every

  struct Parts {
    double compute = 0, collectives = 0, idle = 0;
    double seconds() const { return compute + collectives + idle; }
  };
  /// `rows` on the busiest of `ranks`, of which `on_host` share a host; `steps` steps.
  Parts predict(int ranks, int on_host, double rows, double steps) const;
};

}  // namespace kvmesh
