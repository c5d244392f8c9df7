// What the tests of training's operations share.
#pragma once

#include "runtime/train_ops.h"
#include "tests/runtime/device_testing.h"

#include <cmath>
#include <numeric>

namespace kvmesh {

/// Not-a-numbers in the device's memory, of what has to be written.
inline Tensor unwritten(Device& device, DType dtype, Shape shape) { return up(device, filled(dtype, shape, std::nan(""))); }

/// |got - want| / |want|
inline double distance(const std::vector<double>& got, const std::vector<double>& want) {
  double wrong = 0, all = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    wrong += (got[i] - want[i]) * (got[i] - want[i]);
    all += want[i] * want[i];
  }
  return std::sqrt(wrong / all);  // a not-a-number compares less than nothing
}

inline double margin(DType dtype) { return dtype == DType::bf16 ? 4e-3 : 1e-6; }

inline bool same_bytes(const Tensor& a, const Tensor& b) { return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0; }

/// dx of y = x / sqrt(mean(x²) + eps)
inline std::vector<double> norm_slope(const std::vector<double>& x, const std::vector<double>& dy, double eps) {
  const auto n = static_cast<double>(x.size());
  const double squares = std::inner_product(x.begin(), x.end(), x.begin(), 0.0), products = std::inner_product(x.begin(), x.end(), dy.begin(), 0.0), r = 1 / std::sqrt(squares / n + eps);
  std::vector<double> dx(x.size());
  for (std::size_t i = 0; i < x.size(); ++i) dx[i] = r * dy[i] - r * r * r * products / n * x[i];
  return dx;
}

}  // namespace kvmesh
