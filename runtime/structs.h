// What an operation is told of its rows: plain structs that host and device code share.
#pragma once

#include "runtime/noise.h"

#include <cstdint>

namespace kvmesh {

/// What happens to an element y of x·w + bias, in float32, before it is rounded once to the output's dtype.
enum class Epilogue {
  none,          ///< out = y
  add,           ///< out = out + y (the residual)
  relu_squared,  ///< out = max(y, 0)²
  gelu,          ///< out = y · Φ(y), the normal distribution's: ½·y·(1 + erf(y / √2))
  gelu_tanh,     ///< out = ½·y·(1 + tanh(√(2/π)·(y + 0.044715·y³)))
  soft_cap,      ///< out = cap · tanh(y / cap)
};

/// A run of consecutive tokens of one row within a packed pass. Positions are absolute cursors: the row began at `start`, the
/// run's tokens are at [begin, begin + count), the slot of position p is p mod size, and RoPE's angle counts from `start`.
struct Segment {
  std::int64_t start = 0;
  std::int64_t begin = 0;
  std::int32_t place = 0;   ///< the row's place in the cache
  std::int32_t count = 0;
  std::int32_t offset = 0;  ///< the run's first row in the packed tensors
};

/// How one row of logits is turned into a token.
struct SampleRow {
  float temperature = 0;            ///< ≤ 0: greedy (argmax, the lowest id among equals)
  std::int32_t top_k = 0;           ///< 0: off; keeps ties of the k-th
  float top_p = 1, min_p = 0;       ///< 1 and 0: off
  NoiseKey key;                     ///< of this draw
  std::uint64_t first_count = 0;    ///< noise counter of vocabulary entry 0 (b·V for row b of a [B,V] draw)
  std::int32_t forced = -1;         ///< ≥ 0: log-probability of this id instead of the drawn one; the token is the argmax
};

}  // namespace kvmesh
