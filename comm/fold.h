// One element of a reduction, for hosts and for devices alike: nvcc reads this.
#pragma once

#include "runtime/dtype.h"

#include <cstdint>
#include <type_traits>

namespace kvmesh {

enum class Reduce { sum, min, max };

/// a ∘ b. NaN wins, whichever side it is on; integer sums wrap.
template <typename T>
constexpr T fold(Reduce op, T a, T b) {
  switch (op) {
    case Reduce::min: return b < a || b != b ? b : a;
    case Reduce::max: return b > a || b != b ? b : a;
    default: break;
  }
  if constexpr (std::is_integral_v<T>) {
    using U = std::make_unsigned_t<T>;
    return static_cast<T>(static_cast<U>(a) + static_cast<U>(b));
  } else {
    return a + b;
  }
}

/// out [n] = operands [ranks, n] folded in the order of the ranks, enqueued on `stream` (a cudaStream_t). All in device memory; i32, i64,
/// u64, f32, f64. In fold.cu; a cudaError_t comes back.
int fold_on_device(DType dtype, const void* operands, void* out, std::int64_t n, int ranks, Reduce op, void* stream);

}  // namespace kvmesh
