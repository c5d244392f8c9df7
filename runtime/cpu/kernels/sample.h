// The loops of the sampler over a whole vocabulary. A logit is read cleaned: NaN as -inf, +inf as the largest float.
#pragma once

#include "runtime/noise.h"

#include <cstdint>

namespace kvmesh::cpu {

/// A value and the vocabulary entry that has it.
struct Best {
  float value;
  std::int32_t id;
};

struct SampleKernels {
  /// The largest of x[0, n) and the lowest index that has it; {-inf, 0} if there is none above -inf.
  Best (*largest)(const float* x, std::int64_t n);
  /// out[b] = the largest of x[b·block, (b+1)·block), for the ceil(n / block) blocks.
  void (*block_maxima)(const float* x, std::int64_t n, float* out);
  /// Copies the entries x[i] ≥ threshold and their i to values and ids (room for n), in order; returns how many.
  std::int64_t (*at_least)(const float* x, std::int64_t n, float threshold, float* values, std::int32_t* ids);
  /// scaled[i] = x[i] / temperature and weights[i] = e^(scaled[i] - top), unless null; returns the sum of the weights in
  /// units of fixed_point_unit. top ≥ every x[i] / temperature.
  std::uint64_t (*weigh)(const float* x, std::int64_t n, float temperature, float top, float* scaled, float* weights);
  /// The largest x[i] / temperature + gumbel(key, first_count + id), with the lowest id = ids[i] among equals (i + first_id if ids is
  /// null; else ascending). May leave out entries whose sum is below `floor`; {-inf, first id} if it found none above -inf.
  Best (*draw)(const float* x, const std::int32_t* ids, std::int64_t n, std::int32_t first_id, float temperature, NoiseKey key,
               std::uint64_t first_count, float floor);
};

constexpr std::int64_t sample_block = 32;  ///< entries that block_maxima takes together

namespace scalar { extern const SampleKernels sample_kernels; }
namespace avx2 { extern const SampleKernels sample_kernels; }
namespace avx512 { extern const SampleKernels sample_kernels; }
namespace avx512_bf16 { extern const SampleKernels sample_kernels; }
namespace amx { extern const SampleKernels sample_kernels; }

}  // namespace kvmesh::cpu
