// A pass's rows as cuDNN wants to be told of them, and which are left to our own attention: those whose keys wrap around the ring's end.
#include "runtime/cuda/device_code.h"

namespace kvmesh::cuda {
namespace {

constexpr unsigned threads = 128;

struct Keys {
  std::int64_t slot, count;  // where a segment's keys begin in its ring, and how many its queries see
  bool whole;                // they lie behind each other
};

__device__ Keys keys_of(const Segment& s, std::int64_t size, std::int64_t window) {
  const std::int64_t own = s.begin - s.start, oldest = window < 0 || own < window ? 0 : own - window;
  const std::int64_t slot = (s.start + oldest) % size, count = own + s.count - oldest;
  return {slot, count, slot + count <= size};
}

/// One thread a row, and one a token. Rows that wrap have no queries, and those beyond the segments nothing at all.
__global__ void __launch_bounds__(threads) rows_kernel(SdpaRowsTask task) {
  grid_dependency_launch();
  grid_dependency_wait();
  const RingTask& r = task.ring;
  const std::int64_t i = std::int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i <= task.rows) {
    const bool there = i < task.segments;
    const Segment s = r.segments[there ? i : task.segments - 1];
    const Keys keys = keys_of(s, r.size, task.window);
    const bool served = there && keys.whole;
    if (i < task.rows) {
      task.out.query_lengths[i] = served ? s.count : 0;
      task.out.key_lengths[i] = served ? static_cast<std::int32_t>(keys.count) : 0;
    }
    const std::int64_t token = there ? s.offset : s.offset + s.count, key = s.place * r.kv_heads * r.size + keys.slot + (there ? 0 : keys.whole ? keys.count : 0);
    task.out.query_offsets[i] = static_cast<std::int32_t>(token * r.heads * r.head_dim);
    task.out.key_offsets[i] = static_cast<std::int32_t>(key * r.head_dim);
    if (task.out.dkv_offsets) task.out.dkv_offsets[i] = static_cast<std::int32_t>(token * r.kv_heads * r.head_dim);
  }
  if (task.out.left_over && i < r.tokens) {
    const std::int32_t run = r.run_of[i];
    task.out.left_over[i] = run >= 0 && keys_of(r.segments[run], r.size, task.window).whole ? -1 : run;
  }
}

}  // namespace

cudaError_t sdpa_rows(const Queue& queue, const SdpaRowsTask& task) {
  const std::int64_t count = task.rows + 1 > task.ring.tokens ? task.rows + 1 : task.ring.tokens;
  return launch(queue, dim3(static_cast<unsigned>(ceil_div<std::int64_t>(count, threads))), threads, 0, rows_kernel, task);
}

}  // namespace kvmesh::cuda
