// Textbook formulas.
#include "launch/scale_model.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

namespace kvmesh {
namespace {

double mean_of(std::span<const double> values) {
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

/// The 97.5 % quantile of Student's t for 1, 2, … degrees of freedom; beyond the table within 0.3 %.
double t_quantile(std::size_t degrees) {
  constexpr double table[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086};
  if (degrees <= std::size(table)) return table[degrees - 1];
  return 1.95996 + 2.37227 / static_cast<double>(degrees) + 2.8225 / static_cast<double>(degrees * degrees);  // the first terms of Cornish and Fisher's expansion
}

/// Of the standard normal distribution, by Acklam's rational approximation (relative error below 1.2e-9) for 0.5 ≤ p < 1.
double normal_quantile(double p) {
  if (p > 0.97575) {
    const double q = std::sqrt(-2 * std::log(1 - p));
    return -(((((-7.784894002430293e-03 * q - 3.223964580411365e-01) * q - 2.400758277161838e+00) * q - 2.549732539343734e+00) * q + 4.374664141464968e+00) * q + 2.938163982698783e+00) /
           ((((7.784695709041462e-03 * q + 3.224671290700398e-01) * q + 2.445134137142996e+00) * q + 3.754408661907416e+00) * q + 1);
  }
  const double q = p - 0.5, r = q * q;
  return (((((-3.969683028665376e+01 * r + 2.209460984245205e+02) * r - 2.759285104469687e+02) * r + 1.383577518672690e+02) * r - 3.066479806614716e+01) * r + 2.506628277459239e+00) * q /
         (((((-5.447609879822406e+01 * r + 1.615858368580409e+02) * r - 1.556989798598866e+02) * r + 6.680131188771972e+01) * r - 1.328068155288572e+01) * r + 1);
}

}  // namespace

Estimate estimate(std::span<const double> values) {
  const double mean = mean_of(values), n = static_cast<double>(values.size());
  if (values.size() < 2) return {mean, std::numeric_limits<double>::infinity()};
  double squares = 0;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return {mean, t_quantile(values.size() - 1) * std::sqrt(squares / (n - 1) / n)};
}

Estimate ratio(const Estimate& a, const Estimate& b, double scale) {
  const double r = scale * a.mean / b.mean;
  return {r, std::abs(r) * std::hypot(a.half_width / a.mean, b.half_width / b.mean)};
}

Line fit_line(std::span<const double> x, std::span<const double> y) {
  const double mx = mean_of(x), my = mean_of(y);
  double xx = 0, xy = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    xx += (x[i] - mx) * (x[i] - mx);
    xy += (x[i] - mx) * (y[i] - my);
  }
  const double slope = xx > 0 ? xy / xx : 0;
  return {my - slope * mx, slope};
}

Plane fit_plane(std::span<const double> a, std::span<const double> b, std::span<const double> y) {
  double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;  // of a / y and b / y, which are to add up to 1
  for (std::size_t i = 0; i < y.size(); ++i) {
    const double u = a[i] / y[i], v = b[i] / y[i];
    aa += u * u, ab += u * v, bb += v * v, a1 += u, b1 += v;
  }
  const double determinant = aa * bb - ab * ab, only_a = aa > 0 ? a1 / aa : 0, only_b = bb > 0 ? b1 / bb : 0;
  if (determinant <= 1e-12 * aa * bb) return aa > 0 ? Plane{only_a, 0} : Plane{0, only_b};
  const Plane plane{(a1 * bb - b1 * ab) / determinant, (b1 * aa - a1 * ab) / determinant};
  if (plane.b_slope < 0) return {only_a, 0};
  return plane.a_slope < 0 ? Plane{0, only_b} : plane;
}

Interval middle_95(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double p) {  // linear between order statistics
    const double x = p * static_cast<double>(values.size() - 1);
    const auto i = static_cast<std::size_t>(x);
    return i + 1 < values.size() ? std::lerp(values[i], values[i + 1], x - static_cast<double>(i)) : values[i];
  };
  return {at(0.025), at(0.975)};
}

double expected_largest(int n) { return n <= 1 ? 0 : normal_quantile((n - 0.375) / (n + 0.25)); }

CostModel::Parts CostModel::predict(int ranks, int on_host, double rows, double steps) const {
  Parts parts;
  const double rounds = steps / round;
  parts.compute = (prefill.at(rows) + steps * step.at(rows)) * (1 + contention * (on_host - 1));
  const double others_bytes = (ranks - 1) * (bytes_per_rank + rows * round * bytes_per_row);
  parts.collectives = rounds * (latency * std::ceil(std::log2(ranks)) + others_bytes * seconds_per_byte);
  parts.idle = rounds * jitter * std::sqrt(round) * expected_largest(ranks);
  return parts;
}

}  // namespace kvmesh
