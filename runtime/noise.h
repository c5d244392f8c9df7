// Counted random numbers: threefry2x32 as jax.random has it (partitionable mode), and the noise that a draw adds to logits.
// For host and device code: plain float32 multiplications and additions in a fixed order, correct only when nothing fuses them
// (-ffp-contract=off, nvcc -fmad=false), so that every instruction set and the GPU get the same bits.
// Sources: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); JAX's jax/_src/random for keys, uniforms and
// Gumbel noise (mode "low", the default); S. L. Moshier's Cephes (logf.c, expf.c) for the polynomials.
#pragma once

#include <cstdint>

// Always inlined: kernels are compiled for several instruction sets, and no copy of theirs may serve for all.
#ifdef __CUDACC__
#define KVMESH_HD __host__ __device__ __forceinline__
#else
#define KVMESH_HD [[gnu::always_inline]] inline
#endif

namespace kvmesh {

struct NoiseKey {
  std::uint32_t hi = 0, lo = 0;
  bool operator==(const NoiseKey&) const = default;
};

/// Twenty rounds of threefry on the counter (hi, lo); the result is the pair (hi, lo).
KVMESH_HD NoiseKey threefry2x32(NoiseKey key, std::uint32_t hi, std::uint32_t lo) {
  constexpr int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const std::uint32_t keys[3] = {key.hi, key.lo, key.hi ^ key.lo ^ 0x1bd11bdau};
  std::uint32_t x = hi + keys[0], y = lo + keys[1];
#pragma GCC unroll 5
  for (int group = 0; group < 5; ++group) {
#pragma GCC unroll 4
    for (int round = 0; round < 4; ++round) {
      const int r = rotations[group % 2][round];
      x += y;
      y = ((y << r) | (y >> (32 - r))) ^ x;
    }
    x += keys[(group + 1) % 3];
    y += keys[(group + 2) % 3] + static_cast<std::uint32_t>(group + 1);
  }
  return {x, y};
}

/// jax.random.PRNGKey(seed) for seeds below 2³².
KVMESH_HD NoiseKey noise_key(std::uint32_t seed) { return {0, seed}; }

/// jax.random.fold_in(key, data)
KVMESH_HD NoiseKey fold_in(NoiseKey key, std::uint32_t data) { return threefry2x32(key, 0, data); }

struct SplitKey {
  NoiseKey first, second;
};

/// jax.random.split(key, 2)
KVMESH_HD SplitKey split(NoiseKey key) { return {threefry2x32(key, 0, 0), threefry2x32(key, 0, 1)}; }

/// Element `count` of jax.random.bits(key, shape), in row-major order.
KVMESH_HD std::uint32_t noise_bits(NoiseKey key, std::uint64_t count) {
  const NoiseKey x = threefry2x32(key, static_cast<std::uint32_t>(count >> 32), static_cast<std::uint32_t>(count));
  return x.hi ^ x.lo;
}

/// Random bits → [2⁻¹²⁶, 1), as jax.random.uniform(minval=tiny, maxval=1) makes it: multiples of 2⁻²³, and tiny in place of 0.
KVMESH_HD float uniform_from_bits(std::uint32_t bits) {
  const float x = __builtin_bit_cast(float, (bits >> 9) | 0x3f800000u) - 1.0f;
  return x > 0x1p-126f ? x : 0x1p-126f;
}

/// Natural logarithm of a positive normal number, within 1 ulp.
KVMESH_HD float log_f32(float x) {
  const std::uint32_t bits = __builtin_bit_cast(std::uint32_t, x);
  const std::int32_t e = static_cast<std::int32_t>(bits - 0x3f3504f3u) >> 23;  // x = m · 2^e with m in [√½, √2)
  const float f = __builtin_bit_cast(float, bits - (static_cast<std::uint32_t>(e) << 23)) - 1.0f;
  const float exponent = static_cast<float>(e);
  const float z = f * f;
  float p = 7.0376836292e-2f;
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float y = p * f * z;
  y = y + exponent * -2.12194440e-4f;
  y = y - 0.5f * z;
  return (f + y) + exponent * 0.693359375f;
}

/// e^x for x ≤ 0, within 2 ulp; exactly 1 at 0, and 0 below -87 (2⁻¹²⁶ is e^-87.3).
KVMESH_HD float exp_f32(float x) {
  const float c = x > -87.0f ? x : -87.0f;
  const float shifted = c * 1.44269504088896341f + 0x1.8p23f;  // rounds to an integer n in the low bits
  const float n = shifted - 0x1.8p23f;
  const std::uint32_t exponent = __builtin_bit_cast(std::uint32_t, shifted) - __builtin_bit_cast(std::uint32_t, 0x1.8p23f) + 127u;
  const float r = (c - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = ((p * (r * r) + r) + 1.0f) * __builtin_bit_cast(float, exponent << 23);
  return x >= -87.0f ? y : 0.0f;
}

/// The largest value of gumbel_from_bits is 15.94; no logit that lies this far below a sum can beat it.
constexpr float gumbel_bound = 16.0f;

/// Random bits → standard Gumbel noise, -log(-log(uniform)).
KVMESH_HD float gumbel_from_bits(std::uint32_t bits) { return -log_f32(-log_f32(uniform_from_bits(bits))); }

/// The noise of vocabulary entry v is gumbel(key, first_count + v).
KVMESH_HD float gumbel(NoiseKey key, std::uint64_t count) { return gumbel_from_bits(noise_bits(key, count)); }

/// A weight in [0, 1] as a multiple of 2⁻⁴⁴, rounded to nearest: whole numbers add up to the same sum in every order.
/// Sums of fewer than 2²⁰ weights fit.
KVMESH_HD std::uint64_t fixed_point(float weight) {
  return __builtin_bit_cast(std::uint64_t, static_cast<double>(weight) + 256.0) - __builtin_bit_cast(std::uint64_t, 256.0);
}
constexpr double fixed_point_unit = 0x1p-44;

}  // namespace kvmesh
