// Device::linear against a float64 twin, and the same bits for a row whatever its company.
#include "tests/runtime/device_testing.h"

#include <cmath>
#include <functional>
#include <memory>
#include <numbers>

namespace kvmesh {
namespace {

/// A weight and the memory that it is packed into, aligned to no more than a packed layout asks for.
Weight packed(Device& device, const Tensor& source, DType dtype, Quantize quantize = Quantize::none) {
  const std::int64_t k = source.size(0), n = source.size(1);
  const Tensor data = host_tensor(DType::u8, {static_cast<std::int64_t>(device.weight_bytes(dtype, k, n, quantize))});
  device.pack_weight(source, dtype, data.raw(), quantize);
  return {.k = k, .n = n, .dtype = dtype, .data = device.resident(data), .quantize = quantize};
}

constexpr Quantize quantizes[] = {Quantize::none, Quantize::int8};

/// What a weight packed from `source` [k, n] holds.
std::vector<double> kept(const Tensor& source, Quantize quantize) {
  std::vector<double> w = values(source);
  if (quantize == Quantize::none) return w;
  const std::int64_t n = source.size(1);
  for (std::int64_t j = 0; j < n; ++j) {
    float most = 0;
    for (std::size_t i = j; i < w.size(); i += n) most = std::max(most, static_cast<float>(std::abs(w[i])));
    const float scale = most / 127;
    for (std::size_t i = j; i < w.size(); i += n) w[i] = scale > 0 ? double{scale} * std::nearbyint(static_cast<float>(w[i]) / scale) : 0;
  }
  return w;
}

/// Device::linear on the host's tensors.
void linear(Device& device, const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap = 0) {
  const Tensor there = up(device, out);
  device.linear(up(device, x), w, epilogue, there, cap);
  device.copy(there, out);
}

double expected(double y, Epilogue epilogue, double old, double cap) {
  switch (epilogue) {
    case Epilogue::none: return y;
    case Epilogue::add: return old + y;
    case Epilogue::relu_squared: return y > 0 ? y * y : 0;
    case Epilogue::gelu: return 0.5 * y * std::erfc(-y / std::sqrt(2.0));
    case Epilogue::gelu_tanh: return 0.5 * y * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (y + 0.044715 * y * y * y)));
    default: return cap * std::tanh(y / cap);
  }
}

constexpr Epilogue epilogues[] = {Epilogue::none, Epilogue::add, Epilogue::relu_squared, Epilogue::gelu, Epilogue::gelu_tanh, Epilogue::soft_cap};

/// x · w in float64, and the sums of the products' magnitudes.
struct Sums {
  std::vector<double> sum, size;

  Sums(const Tensor& x, const std::vector<double>& ws) : sum(static_cast<std::size_t>(x.size(0)) * ws.size() / static_cast<std::size_t>(x.size(1))), size(sum.size()) {
    const std::vector<double> xs = values(x);
    const std::int64_t k = x.size(1), n = std::ssize(ws) / k;
    for (std::int64_t r = 0; r < x.size(0); ++r) {
      for (std::int64_t i = 0; i < k; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          const double term = xs[r * k + i] * ws[i * n + j];
          sum[r * n + j] += term;
          size[r * n + j] += std::abs(term);
        }
      }
    }
  }
};

/// Device::linear with every epilogue, with and without a bias, is what float64 makes of the sums.
void expect_products(Device& device, const Tensor& x, const Weight& w, const Sums& sums, DType out_dtype, const std::string& what) {
  constexpr float cap = 15;
  const std::int64_t n = w.n;
  const Tensor bias = random_tensor(DType::f32, {n}, 4), before = random_tensor(out_dtype, {x.size(0), n}, 3);
  const std::vector<double> olds = values(before);
  for (const bool biased : {false, true}) {
    Weight weight = w;
    if (biased) weight.bias = up(device, bias);
    for (const Epilogue epilogue : epilogues) {
      const Tensor out = copy_of(before);
      linear(device, x, weight, epilogue, out, cap);
      const std::vector<double> got = values(out);
      for (std::size_t i = 0; i < got.size(); ++i) {
        const double y = sums.sum[i] + (biased ? get(bias, static_cast<std::int64_t>(i) % n) : 0), want = expected(y, epilogue, olds[i], cap);
        // relu² doubles relative errors; sums lose up to some 1e-7 of the sum of magnitudes.
        const double slope = epilogue == Epilogue::relu_squared ? 2 * std::abs(y) + 1 : 1.2;
        const double margin = tolerance(out_dtype) * std::abs(want) + 2e-6 * (sums.size[i] + std::abs(olds[i])) * slope + 1e-30;
        ASSERT_NEAR(got[i], want, margin) << what << ", epilogue " << static_cast<int>(epilogue) << (biased ? " with" : " without") << " a bias, at " << i / n << ", " << i % n;
      }
    }
  }
}

TEST(Linear, AgreesWithFloat64) {
  const auto device = test_device(2);
  struct Case {
    std::int64_t rows, k, n;
  };
  for (const Case c : {Case{1, 1, 1}, {1, 7, 5}, {3, 64, 64}, {7, 33, 65}, {13, 96, 200}, {70, 129, 48}, {2, 300, 1000}}) {
    for (const DType dtype : float_types()) {
      const Tensor x = random_tensor(dtype, {c.rows, c.k}, 1), source = random_tensor(dtype, {c.k, c.n}, 2);
      for (const Quantize quantize : quantizes) {
        const Sums sums(x, kept(source, quantize));
        const Weight w = packed(*device, source, dtype, quantize);
        for (const DType out_dtype : {dtype, DType::f32}) {
          expect_products(*device, x, w, sums, out_dtype, fmt::format("{} {} {}x{}x{}", name_of(dtype), name_of(quantize), c.rows, c.k, c.n));
        }
      }
    }
  }
}

TEST(Linear, IntegersAreTheNearestAndTiesAreEven) {
  const auto device = test_device();
  constexpr int k = 6, n = 3;
  // A column whose scale is 1, one of zeros, and one whose scale is below the normal numbers.
  const float columns[n][k] = {{127, 0.5f, 1.5f, -2.5f, -126.6f, 3.25f}, {0, -0.0f, 0, 0, 0, 0}, {0x1p-142f, -0x1.ap-143f, 0, 0, 0, 0x1p-149f}};
  const float wanted[n][k] = {{127, 0, 2, -2, -127, 3}, {}, {127 * 0x1p-149f, -104 * 0x1p-149f, 0, 0, 0, 0x1p-149f}};
  const Tensor source = host_tensor(DType::f32, {k, n}), x = filled(DType::f32, {k, k}, 0), out = host_tensor(DType::f32, {k, n});
  for (int i = 0; i < k; ++i) {
    set(x, i * k + i, 1);
    for (int j = 0; j < n; ++j) set(source, i * n + j, columns[j][i]);
  }
  linear(*device, x, packed(*device, source, DType::f32, Quantize::int8), Epilogue::none, out);
  for (int i = 0; i < k; ++i) {
    for (int j = 0; j < n; ++j) EXPECT_EQ(get(out, i * n + j), wanted[j][i]) << i << ", " << j;
  }
}

// The same chain of operations: columns whose scale is 1 give the bits of the weight that holds their integers as numbers.
TEST(Linear, IntegersAreMultipliedLikeTheNumbersThatTheyAre) {
  const auto device = test_device(2);
  constexpr std::int64_t rows = 140, k = 328, n = 390;
  const Tensor source = host_tensor(DType::bf16, {k, n});
  for (std::int64_t i = 0; i < k * n; ++i) set(source, i, i < n ? 127 : static_cast<double>(i * 7919 % 255 - 127));
  for (const DType dtype : float_types()) {
    const Tensor x = random_tensor(dtype, {rows, k}, 15);
    for (const std::int64_t count : {1, 2, 3, 4, 6, 7, 17, 33, 140}) {
      const Tensor numbers = host_tensor(DType::f32, {count, n}), integers = host_tensor(DType::f32, {count, n});
      linear(*device, x.slice(0, count), packed(*device, source, dtype), Epilogue::none, numbers);
      linear(*device, x.slice(0, count), packed(*device, source, dtype, Quantize::int8), Epilogue::none, integers);
      EXPECT_TRUE(same_rows(integers, 0, numbers, 0, count)) << name_of(dtype) << ", " << count << " rows";
    }
  }
}

TEST(Linear, PacksFloat32ToBfloat16ByRounding) {
  const auto device = test_device();
  const Tensor source = random_tensor(DType::f32, {33, 70}, 4), rounded = host_tensor(DType::bf16, {33, 70});
  for (std::int64_t i = 0; i < source.numel(); ++i) set(rounded, i, get(source, i));
  const Weight a = packed(*device, source, DType::bf16), b = packed(*device, rounded, DType::bf16);
  EXPECT_EQ(std::memcmp(down(*device, a.data).raw(), down(*device, b.data).raw(), a.data.bytes()), 0);
}

TEST(Linear, SmallLogitsKeepTheirPrecisionUnderTheCap) {
  const auto device = test_device();
  const Tensor x = host_tensor(DType::f32, {1, 1}), source = host_tensor(DType::f32, {1, 2000}), out = host_tensor(DType::f32, {1, 2000});
  set(x, 0, 1);
  for (int i = 0; i < 2000; ++i) set(source, i, (i % 2 ? -1 : 1) * std::exp(-12 + i * 0.01));  // 6e-6 … 3e3
  linear(*device, x, packed(*device, source, DType::f32), Epilogue::soft_cap, out, 15);
  for (int i = 0; i < 2000; ++i) {
    const double want = 15 * std::tanh(get(source, i) / 15);
    ASSERT_NEAR(get(out, i), want, 4e-7 * std::abs(want)) << get(source, i);
  }
}

// The curves themselves, where the input is exact: relative errors in the body, the tails too.
TEST(Linear, GeluKeepsItsPrecision) {
  const auto device = test_device();
  constexpr int n = 4000;
  const Tensor x = host_tensor(DType::f32, {1, 1}), source = host_tensor(DType::f32, {1, n}), out = host_tensor(DType::f32, {1, n});
  set(x, 0, 1);
  for (int i = 0; i < n; ++i) set(source, i, i < 2000 ? -10 + i * 0.01 : (i % 2 ? -1 : 1) * std::exp(-15 + (i - 2000) * 0.008));
  const Weight w = packed(*device, source, DType::f32);
  for (const Epilogue epilogue : {Epilogue::gelu, Epilogue::gelu_tanh}) {
    linear(*device, x, w, epilogue, out);
    for (int i = 0; i < n; ++i) {
      const double y = get(source, i);
      // 1 + tanh u = 2 / (1 + exp(-2u)), which float64 can say in the tail too.
      const double want = epilogue == Epilogue::gelu ? expected(y, epilogue, 0, 0) : y / (1 + std::exp(-2 * std::sqrt(2 / std::numbers::pi) * (y + 0.044715 * y * y * y)));
      ASSERT_NEAR(get(out, i), want, 5e-7 * (1 + y * y / 4 + std::abs(y * y * y) / 8) * std::abs(want) + 1e-36) << y;
    }
  }
}

using Product = std::function<void(const Tensor& x, const Tensor& out)>;

/// Whether rows come out with the same bits for every number of rows and every position among them.
testing::AssertionResult rows_are_independent(const Product& product, const Tensor& x, std::int64_t n, DType out_dtype) {
  const std::int64_t rows = x.size(0);
  const Tensor alone = host_tensor(out_dtype, {rows, n});
  for (std::int64_t r = 0; r < rows; ++r) product(x.slice(r, r + 1), alone.slice(r, r + 1));
  for (std::int64_t count = 1; count <= rows; count = count < 70 ? count + 1 : count * 3) {
    for (const std::int64_t first : {std::int64_t{0}, (rows - count) / 2, rows - count}) {
      const Tensor out = host_tensor(out_dtype, {count, n});
      product(x.slice(first, first + count), out);
      if (auto same = same_rows(out, 0, alone, first, count); !same) return same << ", " << count << " rows from " << first;
    }
  }
  return testing::AssertionSuccess();
}

TEST(Linear, ARowsBitsDoNotDependOnItsCompanyOrThreads) {
  struct Case {
    std::int64_t rows, k, n;
  };
  const std::vector<Case> cases = {{75, 97, 130}, {75, 256, 64}, {700, 768, 96}}, few = {{40, 97, 20}, {20, 600, 9}};
  for (const Case c : emulated() ? few : cases) {
    for (const DType dtype : float_types()) {
      const Tensor x = random_tensor(dtype, {c.rows, c.k}, 5), source = random_tensor(dtype, {c.k, c.n}, 6);
      for (const Quantize quantize : quantizes) {
        Tensor first;
        for (int threads = 1; threads <= (on_cuda() ? 1 : 4); ++threads) {
          const auto device = test_device(threads);
          Weight w = packed(*device, source, dtype, quantize);
          w.bias = up(*device, random_tensor(DType::f32, {c.n}, 14));
          const auto product = [&](const Tensor& rows, const Tensor& out) { linear(*device, rows, w, Epilogue::gelu, out); };
          if (threads < 3) {
            EXPECT_TRUE(rows_are_independent(product, x, c.n, dtype)) << name_of(dtype) << " " << name_of(quantize) << ", k " << c.k << ", threads " << threads;
          }
          const Tensor out = host_tensor(DType::f32, {c.rows, c.n});
          product(x, out);
          if (threads == 1) first = out;
          EXPECT_TRUE(same_rows(out, 0, first, 0, c.rows)) << "threads " << threads;
        }
      }
    }
  }
}

// A device may have other kernels for many rows than for few.
TEST(Linear, ManyRowsAndFewGiveTheSameBits) {
  constexpr std::int64_t rows = 140, k = 328, n = 390;
  const auto device = test_device(2);
  const Tensor x = random_tensor(DType::bf16, {rows, k}, 12), source = random_tensor(DType::bf16, {k, n}, 13);
  for (const Quantize quantize : quantizes) {
    const Weight w = packed(*device, source, DType::bf16, quantize);
    const Tensor whole = host_tensor(DType::f32, {rows, n});
    linear(*device, x, w, Epilogue::relu_squared, whole);
    for (const std::int64_t count : {1, 17, 33, 127}) {
      const Tensor some = host_tensor(DType::f32, {count, n});
      linear(*device, x.slice(rows - count, rows), w, Epilogue::relu_squared, some);
      EXPECT_TRUE(same_rows(some, 0, whole, rows - count, count)) << name_of(quantize) << ", " << count;
    }
  }
}

TEST(Linear, ResidualAddsAreIndependentToo) {
  const auto device = test_device(2);
  const Tensor x = random_tensor(DType::bf16, {40, 96}, 7), source = random_tensor(DType::bf16, {96, 100}, 8), old = random_tensor(DType::bf16, {1, 100}, 9);
  const Weight w = packed(*device, source, DType::bf16);
  const auto product = [&](const Tensor& rows, const Tensor& out) {
    for (std::int64_t r = 0; r < out.size(0); ++r) device->copy(old, out.slice(r, r + 1));
    linear(*device, rows, w, Epilogue::add, out);
  };
  EXPECT_TRUE(rows_are_independent(product, x, 100, DType::bf16));
}

// What bench compares with: the same numbers, of which no bit is promised.
TEST(Linear, TheLibrarysProductIsTheSameProduct) {
  const auto device = test_device();
  for (const DType dtype : float_types()) {
    for (const DType out_dtype : {dtype, DType::f32}) {
      for (const std::int64_t rows : {1, 5, 48}) {
        const Tensor x = random_tensor(dtype, {rows, 64}, 12), w = random_tensor(dtype, {64, 40}, 13);
        const Tensor there = up(*device, x), weight = up(*device, w), out = device->empty(out_dtype, {rows, 40});
        const Device::Product product = device->library_product(there, weight, out);
        ASSERT_EQ(static_cast<bool>(product), on_cuda());
        if (!product) return;
        product(there, weight, out);
        const Sums sums(x, values(w));
        const Tensor got = down(*device, out);
        for (std::int64_t i = 0; i < got.numel(); ++i) ASSERT_NEAR(get(got, i), sums.sum[i], tolerance(out_dtype) * std::abs(sums.sum[i]) + 1e-5 * sums.size[i]) << name_of(dtype) << ", " << rows << " rows, " << i;
      }
    }
  }
}

/// Columns of a weight on their own, to their place in a wider output.
TEST(Linear, ColumnsGiveTheWholesBits) {
  const auto device = test_device(2);
  constexpr std::int64_t n = 200, cuts[] = {0, 64, 192, n};
  for (const DType dtype : float_types()) {
    for (const std::int64_t rows : {3, 40}) {
      const Weight whole = packed(*device, random_tensor(dtype, {70, n}, 1), dtype);
      const Tensor x = up(*device, random_tensor(dtype, {rows, 70}, 2)), before = random_tensor(DType::f32, {rows, n}, 3), all = up(*device, before), parts = up(*device, before);
      device->linear(x, whole, Epilogue::add, all);
      for (std::size_t i = 0; i < 3; ++i) {
        device->linear(x, device->columns(whole, cuts[i], cuts[i + 1]), Epilogue::add, parts, 0, cuts[i], n);
        const Tensor got = down(*device, parts), want = down(*device, all);
        for (std::int64_t j = 0; j < rows * n; ++j) ASSERT_EQ(get(got, j), get(j % n < cuts[i + 1] ? want : before, j)) << name_of(dtype) << " at " << j / n << ", " << j % n;
      }
      EXPECT_THROW(device->columns(whole, 32, 64), Error);
      EXPECT_THROW(device->columns(whole, 0, 100), Error);
      EXPECT_THROW(device->linear(x, whole, Epilogue::none, all, 0, 64, n), Error);
    }
  }
}

// The check must be able to fail: a product that splits k when it has few rows is what libraries do.
TEST(Linear, TheCheckCatchesASplitOfKByTheNumberOfRows) {
  constexpr std::int64_t k = 96, n = 8;
  const Tensor x = random_tensor(DType::f32, {20, k}, 10), w = random_tensor(DType::f32, {k, n}, 11);
  const auto product = [&](bool split) {
    return [&w, split](const Tensor& rows, const Tensor& out) {
      const float *a = rows.data<float>(), *b = w.data<float>();
      const std::int64_t parts = split && rows.size(0) < 4 ? 2 : 1;
      for (std::int64_t r = 0; r < rows.size(0); ++r) {
        for (std::int64_t j = 0; j < n; ++j) {
          float sum = 0;
          for (std::int64_t part = 0; part < parts; ++part) {
            float partial = 0;
            for (std::int64_t i = part * k / parts; i < (part + 1) * k / parts; ++i) partial += a[r * k + i] * b[i * n + j];
            sum += partial;
          }
          out.data<float>()[r * n + j] = sum;
        }
      }
    };
  };
  EXPECT_TRUE(rows_are_independent(product(false), x, n, DType::f32));
  EXPECT_FALSE(rows_are_independent(product(true), x, n, DType::f32));
}

}  // namespace
}  // namespace kvmesh
