// One vector type a instruction set, and the few operations that the compiler's vector extension lacks. Everything has
// internal linkage: a function that the linker could merge with another instruction set's copy would crash lesser CPUs.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define KVMESH_INLINE [[gnu::always_inline]] inline

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float Floats [[gnu::vector_size(4 * lanes)]];
typedef std::int32_t Ints [[gnu::vector_size(4 * lanes)]];
typedef std::uint32_t Words [[gnu::vector_size(4 * lanes)]];
typedef std::uint16_t Halves [[gnu::vector_size(2 * lanes)]];
typedef std::int8_t Bytes [[gnu::vector_size(lanes)]];

template <typename V, typename T>
KVMESH_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}
template <typename V, typename T>
KVMESH_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

#if defined(__AVX512F__)
KVMESH_INLINE Floats splat(float x) { return (Floats)_mm512_set1_ps(x); }
KVMESH_INLINE Words splat_word(std::uint32_t x) { return (Words)_mm512_set1_epi32(static_cast<int>(x)); }
KVMESH_INLINE Floats fma(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
KVMESH_INLINE Floats max(Floats a, Floats b) { return (Floats)_mm512_mask_max_ps((__m512)a, 0xffff, (__m512)a, (__m512)b); }
#elif defined(__AVX2__)
KVMESH_INLINE Floats splat(float x) { return (Floats)_mm256_set1_ps(x); }
KVMESH_INLINE Words splat_word(std::uint32_t x) { return (Words)_mm256_set1_epi32(static_cast<int>(x)); }
KVMESH_INLINE Floats fma(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
KVMESH_INLINE Floats max(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
#else
KVMESH_INLINE Floats splat(float x) { return (Floats)_mm_set1_ps(x); }
KVMESH_INLINE Words splat_word(std::uint32_t x) { return (Words)_mm_set1_epi32(static_cast<int>(x)); }
KVMESH_INLINE Floats fma(Floats a, Floats b, Floats c) { return a * b + c; }  // two roundings: the baseline has no fma
KVMESH_INLINE Floats max(Floats a, Floats b) { return (Floats)_mm_max_ps((__m128)a, (__m128)b); }
#endif

/// a < b ? x : y, lane by lane.
KVMESH_INLINE Floats if_less(Floats a, Floats b, Floats x, Floats y) { return a < b ? x : y; }

/// Lane i is i.
KVMESH_INLINE Ints iota() {
  Ints v;
  for (int i = 0; i < lanes; ++i) v[i] = i;
  return v;
}

/// Lane i becomes lane i xor n.
template <int n>
KVMESH_INLINE Floats swap_lanes(Floats v) {
  return __builtin_shuffle(v, iota() ^ n);
}

/// x[i][j] ↔ x[j][i]: in stage n blocks of n by n change sides.
template <int n = 1>
KVMESH_INLINE void transpose(Words (&x)[lanes]) {
  if constexpr (n < lanes) {
    const Ints i = iota();
    const Ints low = (i & n) == 0 ? i : i + (lanes - n), high = (i & n) == 0 ? i + n : i + lanes;
#pragma GCC unroll 16
    for (int a = 0; a < lanes; ++a) {
      if (a & n) continue;
      const Words upper = x[a], lower = x[a + n];
      x[a] = __builtin_shuffle(upper, lower, low);
      x[a + n] = __builtin_shuffle(upper, lower, high);
    }
    transpose<2 * n>(x);
  }
}

// Reductions by a butterfly over the lanes: the same tree for every call.
KVMESH_INLINE float sum_lanes(Floats v) {
  if constexpr (lanes > 8) v = v + swap_lanes<8>(v);
  if constexpr (lanes > 4) v = v + swap_lanes<4>(v);
  v = v + swap_lanes<2>(v);
  v = v + swap_lanes<1>(v);
  return v[0];
}
KVMESH_INLINE float max_lanes(Floats v) {
  if constexpr (lanes > 8) v = max(v, swap_lanes<8>(v));
  if constexpr (lanes > 4) v = max(v, swap_lanes<4>(v));
  v = max(v, swap_lanes<2>(v));
  v = max(v, swap_lanes<1>(v));
  return v[0];
}

// The compiler's own conversions go by halves of a vector.
#if defined(__AVX512F__)
KVMESH_INLINE Words widen_words(Halves h) { return (Words)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)h); }
KVMESH_INLINE Halves narrow_words(Words w) { return (Halves)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)w); }
#elif defined(__AVX2__)
KVMESH_INLINE Words widen_words(Halves h) { return (Words)_mm256_cvtepu16_epi32((__m128i)h); }
KVMESH_INLINE Halves narrow_words(Words w) {  // each at most 0xffff
  const __m256i packed = _mm256_packus_epi32((__m256i)w, (__m256i)w);
  return (Halves)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0b1000));
}
#else
KVMESH_INLINE Words widen_words(Halves h) { return __builtin_convertvector(h, Words); }
KVMESH_INLINE Halves narrow_words(Words w) { return __builtin_convertvector(w, Halves); }
#endif

/// The integers as float32.
#if defined(__AVX512F__)
KVMESH_INLINE Floats widen_bytes(Bytes b) { return (Floats)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, (__m128i)b)); }
#elif defined(__AVX2__)
KVMESH_INLINE Floats widen_bytes(Bytes b) {
  return (Floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(long long, b))));
}
#else
KVMESH_INLINE Floats widen_bytes(Bytes b) { return __builtin_convertvector(b, Floats); }
#endif

/// bfloat16 ↔ float32; rounds to nearest, ties to even; NaN stays NaN (the instruction would flush subnormals).
KVMESH_INLINE Floats widen(Halves h) { return (Floats)(widen_words(h) << 16); }
KVMESH_INLINE Halves narrow(Floats f) {
  const Words u = (Words)f;
  const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const Words quiet = (u >> 16) | 0x40u;
  return narrow_words((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

KVMESH_INLINE float widen_one(std::uint16_t h) { return __builtin_bit_cast(float, static_cast<std::uint32_t>(h) << 16); }
KVMESH_INLINE std::uint16_t narrow_one(float f) {
  const std::uint32_t u = __builtin_bit_cast(std::uint32_t, f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/// n elements of float32 or bfloat16 at element `at` of p, as float32; and back, rounding.
KVMESH_INLINE void read_floats(const void* p, bool bf16, std::int64_t at, std::int64_t n, float* to) {
  if (!bf16) {
    __builtin_memcpy(to, static_cast<const float*>(p) + at, static_cast<std::size_t>(n) * 4);
    return;
  }
  const std::uint16_t* from = static_cast<const std::uint16_t*>(p) + at;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, widen(load<Halves>(from + i)));
  for (; i < n; ++i) to[i] = widen_one(from[i]);
}
KVMESH_INLINE void write_floats(const float* from, std::int64_t n, void* p, bool bf16, std::int64_t at) {
  if (!bf16) {
    __builtin_memcpy(static_cast<float*>(p) + at, from, static_cast<std::size_t>(n) * 4);
    return;
  }
  std::uint16_t* to = static_cast<std::uint16_t*>(p) + at;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, narrow(load<Floats>(from + i)));
  for (; i < n; ++i) to[i] = narrow_one(from[i]);
}

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
