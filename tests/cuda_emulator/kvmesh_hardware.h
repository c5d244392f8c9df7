// The emulator's twin of runtime/cuda/hardware/kvmesh_hardware.h: the same functions with the meaning that the PTX ISA gives the instructions, every
// sum in float32 by ascending k (what a tensor core rounds in between is its own affair: emulated bits are not a GPU's).
#pragma once

#include "cuda_runtime.h"

namespace kvmesh::cuda {

inline std::byte* dynamic_shared() { return static_cast<std::byte*>(cuda_emulator::dynamic_shared_memory); }

inline void grid_dependency_wait() {}
inline void grid_dependency_launch() {}

inline void copy_16_async(void* shared, const void* global, bool valid) {
  cuda_emulator::Thread& t = *cuda_emulator::current;
  t.copies.push_back({shared, valid ? global : nullptr, t.commits});
}
inline void copy_async_commit() { ++cuda_emulator::current->commits; }
template <int pending>
void copy_async_wait() {
  cuda_emulator::Thread& t = *cuda_emulator::current;
  std::erase_if(t.copies, [&](const cuda_emulator::Thread::Copy& copy) {
    if (copy.commit >= t.commits - pending) return false;
    if (copy.from) std::memcpy(copy.to, copy.from, 16);
    else std::memset(copy.to, 0, 16);
    return true;
  });
}

inline float bf16_half(std::uint32_t pair, int half) {
  const std::uint32_t bits = half ? pair & 0xffff0000u : pair << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

/// PTX: mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32. Lane l has, with g = l / 4 and q = l % 4: of A (rows, k) the pairs at k = 2q of
/// rows g and g + 8, then the same at k + 8; of B the pairs at k = 2q and 2q + 8 of column g; of D columns 2q, 2q + 1 of rows g and g + 8.
inline void mma_bf16(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  struct Registers {
    std::uint32_t a[4], b[2];
  };
  const Registers mine{{a0, a1, a2, a3}, {b0, b1}};
  const std::byte* all = cuda_emulator::exchange(&mine, sizeof mine);
  const int g = cuda_emulator::current->lane / 4, q = cuda_emulator::current->lane % 4;
  for (int k = 0; k < 16; ++k) {
    const int owner = k % 8 / 2, high = k / 8;
    const auto left = cuda_emulator::from_lane<Registers>(all, g * 4 + owner);
    for (int column = 0; column < 2; ++column) {
      const auto right = cuda_emulator::from_lane<Registers>(all, (2 * q + column) * 4 + owner);
      const float b = bf16_half(right.b[high], k % 2);
      d[column] = std::fma(bf16_half(left.a[2 * high], k % 2), b, d[column]);
      d[2 + column] = std::fma(bf16_half(left.a[2 * high + 1], k % 2), b, d[2 + column]);
    }
  }
}

/// PTX: ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16. Lane l gives the address of row l % 8 of matrix l / 8; of each matrix it gets elements
/// [2q][g] and [2q + 1][g].
inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  const std::byte* all = cuda_emulator::exchange(&row, sizeof row);
  const int g = cuda_emulator::current->lane / 4, q = cuda_emulator::current->lane % 4;
  for (int m = 0; m < 4; ++m) {
    std::uint16_t low, high;
    std::memcpy(&low, cuda_emulator::from_lane<const std::byte*>(all, m * 8 + 2 * q) + 2 * g, 2);
    std::memcpy(&high, cuda_emulator::from_lane<const std::byte*>(all, m * 8 + 2 * q + 1) + 2 * g, 2);
    r[m] = low | static_cast<std::uint32_t>(high) << 16;
  }
}

}  // namespace kvmesh::cuda
