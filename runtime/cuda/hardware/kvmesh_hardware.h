// The few instructions that CUDA C++ has no plain word for. Tests without a GPU put another file of this name in this one's place
// (tests/cuda_emulator/), so nothing else of the kernels names hardware.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvmesh::cuda {

/// The block's dynamic shared memory, 128-byte aligned.
__device__ inline std::byte* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<std::byte*>(memory);
}

/// Programmatic dependent launch (from compute capability 9.0): a kernel may start while the one before it ends. Everything that another kernel
/// writes is read, and everything is written, after the wait.
__device__ inline void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void grid_dependency_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/// 16 bytes to shared memory, or zeros unless `valid`, in the background; both addresses 16-byte aligned.
__device__ inline void copy_16_async(void* shared, const void* global, bool valid) {
  const auto to = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// This thread's copies have arrived, but for those of the last `pending` commits.
template <int pending>
__device__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

/// d += a · b, 16 × 8 elements over 16 k. Lane l has, with g = l / 4 and q = l % 4: of a (rows, k) the pairs at k = 2q of rows g and g + 8, then the
/// same at k + 8; of b the pairs at k = 2q and 2q + 8 of column g; of d columns 2q, 2q + 1 of rows g and g + 8.
__device__ inline void mma_bf16(float (&d)[4], std::uint32_t a0, std::uint32_t a1, std::uint32_t a2, std::uint32_t a3, std::uint32_t b0, std::uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/// Four 8 × 8 matrices of 16-bit elements from shared memory, transposed: lane l gives the address of row l % 8 of matrix l / 8; of each matrix it
/// gets elements [2q][g] and [2q + 1][g].
__device__ inline void load_matrices_transposed(std::uint32_t (&r)[4], const void* row) {
  const auto from = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from)
               : "memory");
}

}  // namespace kvmesh::cuda
