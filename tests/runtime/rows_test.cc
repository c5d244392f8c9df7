// Row gathering and RMS norm against float64 twins; the same bits wherever a row stands.
#include "tests/runtime/cpu_testing.h"

#include <cmath>

namespace kvmesh {
namespace {

TEST(Rows, GatherCopiesRows) {
  const auto device = cpu_device(2);
  for (const DType dtype : float_types()) {
    const Tensor table = random_tensor(dtype, {11, 7}, 1), ids = host_tensor(DType::i32, {600}), out = host_tensor(dtype, {600, 7});
    for (int i = 0; i < 600; ++i) ids.data<std::int32_t>()[i] = i * 5 % 11;
    device->gather_rows(table, ids, out);
    for (int i = 0; i < 600; ++i) ASSERT_TRUE(same_rows(out, i, table, i * 5 % 11, 1));
    ids.data<std::int32_t>()[3] = 11;
    EXPECT_THROW(device->gather_rows(table, ids, out), Error);
    ids.data<std::int32_t>()[3] = -1;
    EXPECT_THROW(device->gather_rows(table, ids, out), Error);
  }
}

TEST(Rows, RmsNormAgreesWithFloat64) {
  const auto device = cpu_device(2);
  for (const DType dtype : float_types()) {
    for (const std::int64_t width : {1, 2, 5, 16, 33, 768}) {
      for (const float eps : {0.0f, 1e-5f, 0.5f}) {
        const Tensor x = random_tensor(dtype, {37, width}, 2, 3), out = host_tensor(dtype, {37, width});
        device->rms_norm(x, eps, out);
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

TEST(Rows, RmsNormBitsDoNotDependOnPosition) {
  for (const DType dtype : float_types()) {
    const Tensor x = random_tensor(dtype, {100, 51}, 3), alone = host_tensor(dtype, {100, 51});
    const auto one = cpu_device(1);
    for (int r = 0; r < 100; ++r) one->rms_norm(x.slice(r, r + 1), 1e-5f, alone.slice(r, r + 1));
    for (int threads = 1; threads <= 4; ++threads) {
      const Tensor out = host_tensor(dtype, {100, 51});
      cpu_device(threads)->rms_norm(x, 1e-5f, out);
      EXPECT_TRUE(same_rows(out, 0, alone, 0, 100)) << "threads " << threads;
    }
  }
}

}  // namespace
}  // namespace kvmesh
