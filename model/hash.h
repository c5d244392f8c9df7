// A fast hash of bytes, for comparing what should be equal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <ranges>
#include <span>

namespace kvmesh {

/// XXH3, 64 bits, of `bytes` after what `before` is the hash of.
std::uint64_t hash_bytes(std::span<const std::byte> bytes, std::uint64_t before);

template <std::ranges::contiguous_range Values>
std::uint64_t hash_of(const Values& values, std::uint64_t before) {
  return hash_bytes(std::as_bytes(std::span(values)), before);
}

}  // namespace kvmesh
