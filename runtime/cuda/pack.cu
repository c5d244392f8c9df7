// Weights into the layout of tiles.h, on the host.
#include "runtime/cuda/tiles.h"

#include <cmath>
#include <cstring>

namespace kvmesh::cuda {

std::size_t weight_bytes(const WeightForm& w) { return static_cast<std::size_t>(element_bytes(w) + scale_floats(w) * 4); }

void pack_weight(const void* source, bool source_bf16, const WeightForm& w, void* target) {
  std::memset(target, 0, weight_bytes(w));
  const auto element = [&](std::int64_t i, std::int64_t j) {
    const std::int64_t at = i * w.n + j;
    return source_bf16 ? static_cast<float>(static_cast<const bfloat16*>(source)[at]) : static_cast<const float*>(source)[at];
  };
  float* const scales = reinterpret_cast<float*>(static_cast<std::byte*>(target) + element_bytes(w));
  if (w.int8) {
    for (std::int64_t i = 0; i < w.k; ++i) {
      for (std::int64_t j = 0; j < w.n; ++j) scales[j] = larger(scales[j], std::fabs(element(i, j)));
    }
    for (std::int64_t j = 0; j < w.n; ++j) scales[j] /= 127.0f;
  }
  for (std::int64_t i = 0; i < w.k; ++i) {
    for (std::int64_t j = 0; j < w.n; ++j) {
      const float x = element(i, j);
      const std::int64_t at = place_of(w, i, j);
      if (w.int8) {
        const float integer = scales[j] > 0 ? std::nearbyint(x / scales[j]) : 0.0f;
        static_cast<std::int8_t*>(target)[at] = static_cast<std::int8_t>(integer > 127 ? 127.0f : integer < -127 ? -127.0f : integer);
      } else if (w.bf16) {
        static_cast<bfloat16*>(target)[at] = bfloat16(x);
      } else {
        static_cast<float*>(target)[at] = x;
      }
    }
  }
}

}  // namespace kvmesh::cuda
