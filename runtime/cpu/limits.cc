// The ceilings of these threads on this machine.
#include "runtime/cpu/cpu_device.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace kvmesh::cpu {
namespace {

/// The best of a few runs of `body`, which says how much it did: a rate a second. The best, for whatever else ran only slowed it down.
template <typename Body>
double best_rate(const std::function<void()>& meet, const Body& body) {
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    meet();
    const auto from = std::chrono::steady_clock::now();
    const double done = body();
    best = std::max(best, done / std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count());
  }
  return best;
}

}  // namespace

Limits CpuDevice::measure_limits(DType dtype, const std::function<void()>& meet) {
  constexpr std::int64_t iterations = 10'000, memory_bytes = std::int64_t{512} << 20;
  Limits limits;
  std::vector<double> done(static_cast<std::size_t>(64 * pool_.size()));
  limits.flops_per_s = best_rate(meet, [&] {
    pool_.parallel_for(std::ssize(done), 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) done[static_cast<std::size_t>(i)] = kernels_.multiply_registers(dtype == DType::bf16, iterations);
    });
    double sum = 0;
    for (const double d : done) sum += d;
    return sum;
  });

  const Tensor memory = host_tensor(DType::u8, {memory_bytes});
  std::memset(memory.raw(), 1, memory.bytes());
  constexpr std::int64_t part = 1 << 20;
  limits.bytes_per_s = best_rate(meet, [&] {
    pool_.parallel_for(memory_bytes / part, memory_bytes / part / (4 * pool_.size()), [&](std::int64_t begin, std::int64_t end) {
      kernels_.read_memory(memory.data<std::uint8_t>() + begin * part, (end - begin) * part);
    });
    return static_cast<double>(memory_bytes);
  });
  return limits;
}

}  // namespace kvmesh::cpu
