// Counted random numbers: threefry2x32 as jax.random has it (partitionable mode), for host and device code.
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); JAX's jax/_src/prng.py for the key handling.
#pragma once

#include <cstdint>

namespace kvmesh {

struct NoiseKey {
  std::uint32_t hi = 0, lo = 0;
  bool operator==(const NoiseKey&) const = default;
};

}  // namespace kvmesh
