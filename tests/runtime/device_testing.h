// What the devices' tests share: the device that a run is for, random tensors, values as double, comparisons of bits.
#pragma once

#include "runtime/device.h"
#include "tests/runtime/test_device.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace kvmesh {

inline double get(const Tensor& t, std::int64_t i) {
  if (t.dtype() == DType::bf16) return static_cast<const bfloat16*>(t.raw())[i];
  return static_cast<const float*>(t.raw())[i];
}
inline void set(const Tensor& t, std::int64_t i, double x) {
  if (t.dtype() == DType::bf16) {
    static_cast<bfloat16*>(t.raw())[i] = bfloat16(static_cast<float>(x));
  } else {
    static_cast<float*>(t.raw())[i] = static_cast<float>(x);
  }
}

inline std::vector<double> values(const Tensor& t) {
  std::vector<double> v(static_cast<std::size_t>(t.numel()));
  for (std::int64_t i = 0; i < t.numel(); ++i) v[static_cast<std::size_t>(i)] = get(t, i);
  return v;
}

inline Tensor filled(DType dtype, Shape shape, double x) {
  const Tensor t = host_tensor(dtype, shape);
  for (std::int64_t i = 0; i < t.numel(); ++i) set(t, i, x);
  return t;
}

/// Normally distributed values.
inline Tensor random_tensor(DType dtype, Shape shape, unsigned seed, double scale = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(0, scale);
  const Tensor t = host_tensor(dtype, shape);
  for (std::int64_t i = 0; i < t.numel(); ++i) set(t, i, normal(generator));
  return t;
}

inline Tensor copy_of(const Tensor& t) {
  const Tensor c = host_tensor(t.dtype(), t.shape());
  std::memcpy(c.raw(), t.raw(), t.bytes());
  return c;
}

/// Rows [begin, begin + count) of two matrices hold the same bits; says where not.
inline testing::AssertionResult same_rows(const Tensor& a, std::int64_t a_begin, const Tensor& b, std::int64_t b_begin, std::int64_t count) {
  const std::size_t row = a.bytes() / static_cast<std::size_t>(a.size(0));
  if (row != b.bytes() / static_cast<std::size_t>(b.size(0))) return testing::AssertionFailure() << "rows of different sizes";
  for (std::int64_t r = 0; r < count; ++r) {
    const auto* x = static_cast<const std::byte*>(a.raw()) + static_cast<std::size_t>(a_begin + r) * row;
    const auto* y = static_cast<const std::byte*>(b.raw()) + static_cast<std::size_t>(b_begin + r) * row;
    if (std::memcmp(x, y, row) == 0) continue;
    std::size_t i = 0;
    while (x[i] == y[i]) ++i;
    return testing::AssertionFailure() << "row " << r << " differs from element " << i / size_of(a.dtype()) << " on";
  }
  return testing::AssertionSuccess();
}

/// How far one rounding to `dtype` may be off, relative; for float32 what sums of some hundred terms lose.
inline double tolerance(DType dtype) { return dtype == DType::bf16 ? 1.0 / 256 : 2e-5; }

inline const std::vector<DType>& float_types() {
  static const std::vector<DType> types = {DType::f32, DType::bf16};
  return types;
}

}  // namespace kvmesh
