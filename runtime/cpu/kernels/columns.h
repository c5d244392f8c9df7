// The columns of one step of a packed panel, as they are multiplied: float32 of one k, or bfloat16 of two in a word of 32 bits. Integers become the very
// words that would hold the same numbers.
#pragma once

#include "runtime/cpu/kernels/simd.h"

#include <array>

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr int max_vectors = lanes == 16 ? 4 : 2;     // of columns at once
constexpr std::int64_t panel = max_vectors * lanes;  // columns of a packed panel

#if defined(__AVX512BF16__)
constexpr bool by_tables = true;  // integers that are multiplied as bfloat16 are kept as sign and magnitude, which two tables turn into their bytes
#else
constexpr bool by_tables = false;
#endif

/// Where in a step's [2][panel] bytes the integer of column `column` and of its first or second k lies. By tables: as the instructions that put bytes
/// together take them, which is by halves of a quarter of a vector.
constexpr std::int64_t place_in_step(std::int64_t column, std::int64_t second) {
  if (!by_tables) return second * panel + column;
  const std::int64_t vector = column / lanes, quarter = column % lanes / 4;
  return vector / 2 * 64 + quarter * 16 + vector % 2 * 8 + column % 4 * 2 + second;
}

/// What is kept of integer `i`, -127 … 127.
KVMESH_INLINE std::int8_t kept_integer(bool bf16, std::int32_t i) {
  return static_cast<std::int8_t>(by_tables && bf16 && i < 0 ? -i | 0x80 : i);
}

template <int vectors>
KVMESH_INLINE void read_columns(const float* b, Floats (&w)[vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) w[v] = load<Floats>(b + v * lanes);
}
template <int vectors>
KVMESH_INLINE void read_columns(const std::int8_t* b, Floats (&w)[vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) w[v] = widen_bytes(load<Bytes>(b + v * lanes));
}
template <int vectors>
KVMESH_INLINE void read_columns(const std::uint32_t* b, Words (&w)[vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) w[v] = load<Words>(b + v * lanes);
}

#if defined(__AVX512BF16__)
/// Byte `byte` (0: the lower) of the bfloat16 of 0 … 127.
constexpr std::array<std::uint8_t, 128> bytes_of_magnitudes(int byte) {
  std::array<std::uint8_t, 128> table{};
  for (std::size_t m = 0; m < table.size(); ++m) {
    table[m] = static_cast<std::uint8_t>(__builtin_bit_cast(std::uint32_t, static_cast<float>(m)) >> (16 + 8 * byte));
  }
  return table;
}
alignas(64) constexpr std::array<std::uint8_t, 128> low_bytes = bytes_of_magnitudes(0), high_bytes = bytes_of_magnitudes(1);

template <int vectors>
KVMESH_INLINE void read_columns(const std::int8_t* b, Words (&w)[vectors]) {
  static_assert(vectors % 2 == 0);
  const auto look_up = [](const std::array<std::uint8_t, 128>& table, __m512i i) {
    return _mm512_permutex2var_epi8(load<__m512i>(table.data()), i, load<__m512i>(table.data() + 64));
  };
#pragma GCC unroll 2
  for (int v = 0; v < vectors; v += 2) {
    const __m512i i = load<__m512i>(b + v * 2 * lanes);
    constexpr int or_and = 0xf8;  // a | (b & c)
    const __m512i low = look_up(low_bytes, i), high = _mm512_ternarylogic_epi32(look_up(high_bytes, i), i, _mm512_set1_epi8(static_cast<char>(0x80)), or_and);
    w[v] = (Words)_mm512_unpacklo_epi8(low, high);
    w[v + 1] = (Words)_mm512_unpackhi_epi8(low, high);
  }
}
#else
template <int vectors>
KVMESH_INLINE void read_columns(const std::int8_t* b, Words (&w)[vectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < vectors; ++v) {  // a float32 of such an integer has no lower half
    w[v] = (Words)widen_bytes(load<Bytes>(b + v * lanes)) >> 16 | (Words)widen_bytes(load<Bytes>(b + panel + v * lanes));
  }
}
#endif

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
