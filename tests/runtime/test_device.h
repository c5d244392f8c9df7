// The device that a run of a test is for. Tests are written once: with KVMESH_TEST_DEVICE=cuda they run on a GPU (in a build with CUDA, and say that they are
// skipped where none answers), or on one that is emulated (in a build without; tests/cuda_emulator/), else on the CPU.
#pragma once

#include "runtime/cuda/cuda.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace kvmesh {

inline bool on_cuda() {
  const char* kind = std::getenv("KVMESH_TEST_DEVICE");
  return kind && std::string_view(kind) == "cuda";
}

/// Some hundred times slower than a CPU: fewer cases then.
inline bool emulated() { return on_cuda() && !KVMESH_WITH_CUDA; }

inline std::unique_ptr<Device> test_device(int threads = 1, Attention attention = Attention::automatic) {
  if (!on_cuda()) return make_device("cpu", {.threads = threads});
  if (cuda::device_count() == 0) {
    std::puts("skipped: no GPU answers");
    std::exit(0);
  }
  return cuda::make_device({.attention = attention});
}

/// One whose attention is cuDNN's; nothing where there is no cuDNN, or the run is for the CPU.
inline std::unique_ptr<Device> cudnn_device() {
  try {
    return on_cuda() ? test_device(1, Attention::cudnn) : nullptr;
  } catch (const Error& e) {
    std::printf("note: no attention by cuDNN here: %s\n", e.what());
    return nullptr;
  }
}

/// A copy in the device's memory, and one in the host's.
inline Tensor up(Device& device, const Tensor& host) {
  const Tensor t = device.empty(host.dtype(), host.shape());
  device.copy(host, t);
  return t;
}
inline Tensor down(Device& device, const Tensor& t) {
  const Tensor host = host_tensor(t.dtype(), t.shape());
  device.copy(t, host);
  return host;
}

}  // namespace kvmesh
