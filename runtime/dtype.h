// Element types, and bfloat16 as 16 bits with round-to-nearest-even.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace kvmesh {

enum class DType : std::uint8_t { u8, i32, i64, u64, f16, bf16, f32, f64 };

constexpr std::size_t size_of(DType t) {
  switch (t) {
    case DType::u8: return 1;
    case DType::f16:
    case DType::bf16: return 2;
    case DType::i32:
    case DType::f32: return 4;
    default: return 8;
  }
}

constexpr std::string_view name_of(DType t) {
  constexpr std::string_view names[] = {"uint8", "int32", "int64", "uint64", "float16", "bfloat16", "float32", "float64"};
  return names[static_cast<int>(t)];
}

/// What a weight's elements are kept as: `dtype`, or integers of 8 bits and a float32 scale a column.
enum class Quantize : std::uint8_t { none, int8 };

constexpr std::string_view name_of(Quantize q) { return q == Quantize::none ? "none" : "int8"; }

/// The upper half of a float32. Conversion from float rounds to nearest, ties to even; NaN stays NaN.
struct bfloat16 {
  std::uint16_t bits = 0;

  bfloat16() = default;
  explicit constexpr bfloat16(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    bits = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
  }
  constexpr operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};
static_assert(sizeof(bfloat16) == 2);

template <typename T>
struct DTypeOf;
template <> struct DTypeOf<std::uint8_t> { static constexpr DType value = DType::u8; };
template <> struct DTypeOf<std::int32_t> { static constexpr DType value = DType::i32; };
template <> struct DTypeOf<std::int64_t> { static constexpr DType value = DType::i64; };
template <> struct DTypeOf<std::uint64_t> { static constexpr DType value = DType::u64; };
template <> struct DTypeOf<bfloat16> { static constexpr DType value = DType::bf16; };
template <> struct DTypeOf<float> { static constexpr DType value = DType::f32; };
template <> struct DTypeOf<double> { static constexpr DType value = DType::f64; };

}  // namespace kvmesh
