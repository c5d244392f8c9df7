// Ranges as a profiler would see them: every one that ends has begun.
#include "runtime/cuda/cuda_device.h"

#include <cstdio>
#include <cstdlib>

namespace kvmesh::cuda {
namespace {

int open_ranges = 0;

}  // namespace

void CudaDevice::begin_range(const char*) { ++open_ranges; }

void CudaDevice::end_range() {
  if (--open_ranges >= 0) return;
  std::fputs("CUDA emulator: a range ends that did not begin\n", stderr);
  std::abort();
}

}  // namespace kvmesh::cuda
