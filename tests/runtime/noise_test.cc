// The noise against jax.random (tests/fixtures/noise.json, made by tests/reference/noise.py) and against double logarithms.
#include "runtime/noise.h"

#include "tests/source_dir.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

namespace kvmesh {
namespace {

const nlohmann::json& fixture() {
  static const nlohmann::json all = [] {
    std::ifstream file(source_dir() / "tests/fixtures/noise.json");
    return nlohmann::json::parse(file);
  }();
  return all;
}

NoiseKey key_of(const nlohmann::json& words) { return {words[0].get<std::uint32_t>(), words[1].get<std::uint32_t>()}; }

// |x - exact| in units of float32's last place at `exact`.
double ulps(float x, double exact) {
  const double unit = std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23);
  return std::abs(static_cast<double>(x) - exact) / unit;
}

TEST(Noise, KeysAreJaxs) {
  const auto keys = fixture()["keys"];
  ASSERT_EQ(keys.size(), 7u);
  for (const auto& k : keys) {
    const NoiseKey key = noise_key(k["seed"].get<std::uint32_t>());
    EXPECT_EQ(key, key_of(k["key"]));
    EXPECT_EQ(split(key).first, key_of(k["split"][0]));
    EXPECT_EQ(split(key).second, key_of(k["split"][1]));
    for (const auto& f : k["fold_in"]) EXPECT_EQ(fold_in(key, f[0].get<std::uint32_t>()), key_of(f[1])) << f[0];
    EXPECT_EQ(fold_in(fold_in(key, 3), 11), key_of(k["fold_in_twice"]));
  }
}

TEST(Noise, BitsAndUniformsEqualJaxsAndGumbelIsClose) {
  const auto streams = fixture()["streams"];
  ASSERT_EQ(streams.size(), 3u);
  for (const auto& s : streams) {
    const NoiseKey key = key_of(s["key"]);
    ASSERT_EQ(s["bits"].size(), 400u);
    for (std::uint64_t i = 0; i < 400; ++i) {
      const std::uint32_t bits = noise_bits(key, i);
      ASSERT_EQ(bits, s["bits"][i].get<std::uint32_t>()) << i;
      ASSERT_EQ(std::bit_cast<std::uint32_t>(uniform_from_bits(bits)), s["uniform_bits"][i].get<std::uint32_t>()) << i;
      ASSERT_NEAR(gumbel(key, i), s["gumbel"][i].get<double>(), 1e-5) << i;
    }
  }
}

TEST(Noise, CountersBeyond32Bits) {
  for (const auto& f : fixture()["far"]) EXPECT_EQ(noise_bits({17, 99}, f[0].get<std::uint64_t>()), f[1].get<std::uint32_t>()) << f[0];
}

TEST(Noise, UniformLiesInTinyToOne) {
  EXPECT_EQ(uniform_from_bits(0), 0x1p-126f);
  EXPECT_EQ(uniform_from_bits(511), 0x1p-126f);
  EXPECT_EQ(uniform_from_bits(512), 0x1p-23f);
  EXPECT_EQ(uniform_from_bits(0xffffffffu), 1 - 0x1p-23f);
}

// Every uniform that there is, and so every value that the noise can take.
TEST(Noise, LogarithmAndGumbelOfEveryUniform) {
  double worst_log = 0, worst_gumbel = 0;
  float highest = 0;
  for (std::uint32_t i = 0; i < (1u << 23); ++i) {
    const float u = uniform_from_bits(i << 9);
    const double exact = std::log(static_cast<double>(u));
    worst_log = std::max(worst_log, ulps(log_f32(u), exact));
    const float g = gumbel_from_bits(i << 9);
    worst_gumbel = std::max(worst_gumbel, std::abs(static_cast<double>(g) + std::log(-exact)));
    highest = std::max(highest, g);
  }
  RecordProperty("worst_log_ulps", std::to_string(worst_log));
  RecordProperty("worst_gumbel_error", std::to_string(worst_gumbel * 1e6) + "e-6");
  EXPECT_LT(worst_log, 1.0);
  EXPECT_LT(worst_gumbel, 2e-6);
  EXPECT_LT(highest, gumbel_bound);
}

TEST(Noise, LogarithmOfAllMagnitudes) {
  double worst = 0;
  for (std::uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 997) {
    const float x = std::bit_cast<float>(bits);
    if (x == 1.0f) continue;
    worst = std::max(worst, ulps(log_f32(x), std::log(static_cast<double>(x))));
  }
  EXPECT_LT(worst, 1.0);
  EXPECT_EQ(log_f32(1.0f), 0.0f);
}

TEST(Noise, ExponentialOfEverythingBelowZero) {
  double worst = 0;
  for (float x = -1e-10f; x > -87.0f; x *= 1.00001f) worst = std::max(worst, ulps(exp_f32(x), std::exp(static_cast<double>(x))));
  EXPECT_LT(worst, 2.0);
  EXPECT_EQ(exp_f32(0.0f), 1.0f);
  EXPECT_EQ(exp_f32(-0.0f), 1.0f);
  EXPECT_GT(exp_f32(-87.0f), 0.0f);
  EXPECT_EQ(exp_f32(-87.5f), 0.0f);
  EXPECT_EQ(exp_f32(-HUGE_VALF), 0.0f);
}

TEST(Noise, FixedPointRoundsToNearest) {
  EXPECT_EQ(fixed_point(1.0f), std::uint64_t{1} << 44);
  EXPECT_EQ(fixed_point(0.0f), 0u);
  EXPECT_EQ(fixed_point(0x1p-44f), 1u);
  EXPECT_EQ(fixed_point(0x1.8p-44f), 2u);
  EXPECT_EQ(fixed_point(0x1p-46f), 0u);
}

}  // namespace
}  // namespace kvmesh
