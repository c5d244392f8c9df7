// Row gathering, norms, positions and the gated activation against float64 twins; the same bits wherever a row stands.
#include "tests/runtime/device_testing.h"

#include <cmath>

namespace kvmesh {
namespace {

Tensor rms_norm(Device& device, const Tensor& x, float eps) {
  const Tensor out = device.empty(x.dtype(), x.shape());
  device.norm(up(device, x), {eps}, out);
  return down(device, out);
}

TEST(Rows, GatherCopiesRows) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    for (const std::int64_t width : {7, 16}) {
      const Tensor table = random_tensor(dtype, {11, width}, 1), ids = host_tensor(DType::i32, {600});
      for (int i = 0; i < 600; ++i) ids.data<std::int32_t>()[i] = i * 5 % 11;
      const auto gather = [&] {
        const Tensor out = device->empty(dtype, {600, width});
        device->gather_rows(up(*device, table), up(*device, ids), out);
        return down(*device, out);
      };
      const Tensor out = gather();
      for (int i = 0; i < 600; ++i) ASSERT_TRUE(same_rows(out, i, table, i * 5 % 11, 1));
      for (const std::int32_t id : {11, -1}) {
        ids.data<std::int32_t>()[3] = id;
        if (on_cuda()) EXPECT_TRUE(std::isnan(get(gather(), 3 * width)));
        else EXPECT_THROW(gather(), Error);
      }
    }
  }
}

TEST(Rows, RmsNormAgreesWithFloat64) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    for (const std::int64_t width : {1, 2, 5, 16, 33, 768}) {
      for (const float eps : {0.0f, 1e-5f, 0.5f}) {
        const Tensor x = random_tensor(dtype, {37, width}, 2, 3), out = rms_norm(*device, x, eps);
        for (std::int64_t r = 0; r < 37; ++r) {
          double squares = 0;
          for (std::int64_t i = 0; i < width; ++i) squares += get(x, r * width + i) * get(x, r * width + i);
          for (std::int64_t i = 0; i < width; ++i) {
            const double want = get(x, r * width + i) / std::sqrt(squares / static_cast<double>(width) + eps);
            ASSERT_NEAR(get(out, r * width + i), want, (dtype == DType::bf16 ? 1.0 / 256 : 1e-6) * std::abs(want)) << name_of(dtype) << ", width " << width;
          }
        }
      }
    }
  }
}

/// Random float32 numbers [width], and on the device.
struct Vector {
  Tensor host, there;
  Vector(Device& device, std::int64_t width, unsigned seed) : host(random_tensor(DType::f32, {width}, seed)), there(up(device, host)) {}
};

TEST(Rows, NormsWithWeightsAgreeWithFloat64) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    for (const std::int64_t width : {2, 5, 16, 33, 768}) {
      const Vector weight(*device, width, 5), bias(*device, width, 6);
      for (const bool centred : {false, true}) {
        for (const bool biased : {false, true}) {
          const Tensor x = random_tensor(dtype, {7, width}, 2, 3), there = device->empty(dtype, x.shape());
          device->norm(up(*device, x), {1e-3f, centred, weight.there, biased ? bias.there : Tensor()}, there);
          const Tensor out = down(*device, there);
          for (std::int64_t r = 0; r < 7; ++r) {
            double mean = 0, squares = 0;
            for (std::int64_t i = 0; centred && i < width; ++i) mean += get(x, r * width + i) / static_cast<double>(width);
            for (std::int64_t i = 0; i < width; ++i) squares += (get(x, r * width + i) - mean) * (get(x, r * width + i) - mean);
            for (std::int64_t i = 0; i < width; ++i) {
              const double normed = (get(x, r * width + i) - mean) / std::sqrt(squares / static_cast<double>(width) + 1e-3);
              const double scaled = normed * get(weight.host, i), added = biased ? get(bias.host, i) : 0, want = scaled + added;
              const double rounding = (dtype == DType::bf16 ? 1.0 / 256 : 0) * std::abs(want) + 2e-6 * (std::abs(scaled) + std::abs(added) + 0.1);
              ASSERT_NEAR(get(out, r * width + i), want, rounding) << name_of(dtype) << ", width " << width;
            }
          }
        }
      }
    }
  }
}

TEST(Rows, SwigluAgreesWithFloat64) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    for (const std::int64_t width : {1, 2, 7, 16, 45}) {
      const Tensor x = random_tensor(dtype, {9, 2 * width}, 4, 40), there = device->empty(dtype, {9, width});
      device->swiglu(up(*device, x), there);
      const Tensor out = down(*device, there), alone = device->empty(dtype, {1, width});
      for (std::int64_t r = 0; r < 9; ++r) {
        for (std::int64_t i = 0; i < width; ++i) {
          const double gate = get(x, r * 2 * width + i), want = gate / (1 + std::exp(-gate)) * get(x, r * 2 * width + width + i);
          ASSERT_NEAR(get(out, r * width + i), want, (dtype == DType::bf16 ? 1.0 / 256 : 2e-6) * std::abs(want) + 1e-30) << name_of(dtype) << ", gate " << gate;
        }
        device->swiglu(up(*device, x.slice(r, r + 1)), alone);
        EXPECT_TRUE(same_rows(down(*device, alone), 0, out, r, 1));
      }
    }
  }
}

TEST(Rows, PositionsAreCountedFromTheRowsStart) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    constexpr std::int64_t width = 19;
    const Tensor table = random_tensor(dtype, {30, width}, 1), x = random_tensor(dtype, {200, width}, 2), there = up(*device, x);
    const std::vector<Segment> segments = {{100, 100, 0, 30, 0}, {7, 17, 1, 1, 30}, {50, 53, 2, 27, 173}};
    device->add_positions(up(*device, table), device->prepare({}, segments, {}), there);
    const Tensor out = down(*device, there);
    for (std::int64_t t = 0; t < 200; ++t) {
      const std::int64_t position = t < 30 ? t : t == 30 ? 10 : t >= 173 ? t - 170 : -1;
      for (std::int64_t i = 0; i < width; ++i) {
        const auto sum = static_cast<float>(get(x, t * width + i) + (position < 0 ? 0 : get(table, position * width + i)));
        ASSERT_EQ(get(out, t * width + i), dtype == DType::bf16 ? static_cast<double>(static_cast<float>(bfloat16(sum))) : static_cast<double>(sum)) << "row " << t;
      }
    }
    const std::vector<Segment> beyond = {{0, 0, 0, 31, 0}};
    EXPECT_THROW(device->add_positions(up(*device, table), device->prepare({}, beyond, {}), there), Error);
  }
}

TEST(Rows, RmsNormBitsDoNotDependOnPosition) {
  for (const DType dtype : float_types()) {
    const Tensor x = random_tensor(dtype, {100, 51}, 3), alone = host_tensor(dtype, {100, 51});
    const auto one = test_device(1);
    for (int r = 0; r < 100; ++r) std::memcpy(alone.slice(r, r + 1).raw(), rms_norm(*one, x.slice(r, r + 1), 1e-5f).raw(), 51 * size_of(dtype));
    for (int threads = 1; threads <= 4; ++threads) {
      const Tensor out = rms_norm(*test_device(threads), x, 1e-5f);
      EXPECT_TRUE(same_rows(out, 0, alone, 0, 100)) << "threads " << threads;
    }
  }
}

}  // namespace
}  // namespace kvmesh
