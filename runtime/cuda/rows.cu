// Gathering, positions, norms, the gated activation, RoPE and the cache's new entries: a block or a warp a row, each row's sums by one tree fixed by its width.
#include "runtime/cuda/device_code.h"

namespace kvmesh::cuda {
namespace {

constexpr unsigned row_threads = 128;
constexpr unsigned warps = row_threads / 32;

/// `bytes` (even) from one place to another by a block's threads, 16 at a time where that is possible.
__device__ void copy_bytes(void* to, const void* from, std::int64_t bytes, unsigned thread, unsigned threads) {
  const auto addresses = reinterpret_cast<std::uintptr_t>(to) | reinterpret_cast<std::uintptr_t>(from) | static_cast<std::uintptr_t>(bytes);
  if (addresses % 16 == 0) {
    for (std::int64_t i = thread; i < bytes / 16; i += threads) static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
  } else {
    for (std::int64_t i = thread; i < bytes / 2; i += threads) static_cast<std::uint16_t*>(to)[i] = static_cast<const std::uint16_t*>(from)[i];
  }
}

__global__ void __launch_bounds__(row_threads) gather_kernel(const std::byte* table, std::int64_t table_rows, std::int64_t row_bytes, const std::int32_t* ids,
                                                             std::byte* out) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int32_t id = ids[blockIdx.x];
  std::byte* to = out + blockIdx.x * row_bytes;
  if (id >= 0 && id < table_rows) {
    copy_bytes(to, table + id * row_bytes, row_bytes, threadIdx.x, row_threads);
  } else {
    for (std::int64_t i = threadIdx.x; i < row_bytes; i += row_threads) to[i] = std::byte{0xff};
  }
}

__global__ void __launch_bounds__(row_threads) take_kernel(const std::int32_t* tokens, std::int32_t* ids, std::int64_t count) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t i = blockIdx.x * std::int64_t{row_threads} + threadIdx.x;
  if (i < count) ids[i] = tokens[ids[i]];
}

template <typename T>
__global__ void __launch_bounds__(row_threads) norm_kernel(NormTask t) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ float parts[warps];
  const T* x = static_cast<const T*>(t.x) + blockIdx.x * t.width;
  T* out = static_cast<T*>(t.out) + blockIdx.x * t.width;
  float mean = 0;
  if (t.centred) {
    float sum = 0;
    for (std::int64_t i = threadIdx.x; i < t.width; i += row_threads) sum = sum + to_float(x[i]);
    mean = block_sum<warps>(sum, parts) / static_cast<float>(t.width);
  }
  float sum = 0;
  for (std::int64_t i = threadIdx.x; i < t.width; i += row_threads) {
    const float v = to_float(x[i]) - mean;
    sum = fmaf(v, v, sum);
  }
  const float scale = inverse_rms(block_sum<warps>(sum, parts), t.width, t.eps);
  for (std::int64_t i = threadIdx.x; i < t.width; i += row_threads) {
    float v = (to_float(x[i]) - mean) * scale;
    if (t.weight) v = v * t.weight[i];
    if (t.bias) v = v + t.bias[i];
    out[i] = from_float<T>(v);
  }
}

template <typename T>
__global__ void __launch_bounds__(row_threads) positions_kernel(PositionsTask t) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int32_t run = t.run_of[blockIdx.x];
  if (run < 0) return;
  const Segment s = t.segments[run];
  const T* from = static_cast<const T*>(t.table) + (s.begin - s.start + (blockIdx.x - s.offset)) * t.width;
  T* x = static_cast<T*>(t.x) + blockIdx.x * t.width;
  for (std::int64_t i = threadIdx.x; i < t.width; i += row_threads) x[i] = from_float<T>(to_float(x[i]) + to_float(from[i]));
}

template <typename T>
__global__ void __launch_bounds__(row_threads) swiglu_kernel(const T* x, T* out, std::int64_t width) {
  grid_dependency_launch();
  grid_dependency_wait();
  x += blockIdx.x * 2 * width;
  out += blockIdx.x * width;
  for (std::int64_t i = threadIdx.x; i < width; i += row_threads) {
    const float gate = to_float(x[i]), e = exp_f32(gate < 0 ? gate : -gate);
    out[i] = from_float<T>(gate * ((gate < 0 ? e : 1.0f) / (1.0f + e)) * to_float(x[width + i]));
  }
}

/// One head of a query or key by a warp: norm, then RoPE where there is a table [head_dim].
template <typename T>
__device__ void norm_rope(const AppendTask& task, const T* x, T* out, const float* weight, const float* rope, int lane) {
  const std::int64_t width = task.ring.head_dim, half = width / 2;
  float scale = 1;
  if (task.norm) {
    float sum = 0;
    for (std::int64_t i = lane; i < half; i += 32) {
      const float a = to_float(x[i]), b = to_float(x[i + half]);
      sum = fmaf(b, b, fmaf(a, a, sum));
    }
    scale = inverse_rms(warp_sum(sum), width, task.eps);
  }
  for (std::int64_t i = lane; i < half; i += 32) {
    float a = to_float(x[i]) * scale, b = to_float(x[i + half]) * scale;
    if (weight) a = a * weight[i], b = b * weight[i + half];
    if (rope) {
      const float cos = rope[i], sin = rope[i + half], turned = a * cos - b * sin;
      b = b * cos + a * sin;
      a = turned;
    }
    out[i] = from_float<T>(a);
    out[i + half] = from_float<T>(b);
  }
}

template <typename T>
__global__ void __launch_bounds__(row_threads) append_kernel(AppendTask task) {
  grid_dependency_launch();
  grid_dependency_wait();
  const RingTask& r = task.ring;
  const std::int64_t t = blockIdx.x, h = r.head_dim, head = blockIdx.y * warps + threadIdx.x / 32, all = r.heads + 2 * r.kv_heads;
  const std::int32_t run = r.run_of[t];
  if (run < 0 || head >= all) return;
  const Segment s = r.segments[run];
  const std::int64_t position = s.begin + (t - s.offset);
  const T* x = static_cast<const T*>(task.qkv) + (t * all + head) * h;
  const float* rope = task.rope ? task.rope + (position - s.start) * h : nullptr;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const auto slot = [&](void* ring, std::int64_t kv_head) {
    return static_cast<T*>(ring) + ((s.place * r.kv_heads + kv_head) * r.size + position % r.size) * h;
  };
  if (head < r.heads) {
    norm_rope(task, x, static_cast<T*>(task.q) + (t * r.heads + head) * h, task.q_weight, rope, lane);
  } else if (head < r.heads + r.kv_heads) {
    norm_rope(task, x, slot(r.k, head - r.heads), task.k_weight, rope, lane);
  } else {
    copy_bytes(slot(r.v, head - r.heads - r.kv_heads), x, h * static_cast<std::int64_t>(sizeof(T)), threadIdx.x % 32, 32);
  }
}

__global__ void __launch_bounds__(32) copy_rows_kernel(CopyTask t) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t i = blockIdx.x, head = blockIdx.y;
  const std::int64_t from = ((t.source * t.kv_heads + head) * t.size + (t.from + i) % t.size) * t.row_bytes;
  const std::int64_t to = ((t.target * t.kv_heads + head) * t.size + (t.to + i) % t.size) * t.row_bytes;
  for (void* ring : {t.k, t.v}) copy_bytes(static_cast<std::byte*>(ring) + to, static_cast<std::byte*>(ring) + from, t.row_bytes, threadIdx.x, 32);
}

}  // namespace

cudaError_t gather_rows(const Queue& queue, const void* table, std::int64_t table_rows, std::int64_t row_bytes, const std::int32_t* ids, std::int64_t count,
                        void* out) {
  return launch(queue, dim3(static_cast<unsigned>(count)), row_threads, 0, gather_kernel, static_cast<const std::byte*>(table), table_rows, row_bytes, ids,
                static_cast<std::byte*>(out));
}

cudaError_t take_ids(const Queue& queue, const std::int32_t* tokens, std::int32_t* ids, std::int64_t count) {
  return launch(queue, dim3(static_cast<unsigned>(ceil_div<std::int64_t>(count, row_threads))), row_threads, 0, take_kernel, tokens, ids, count);
}

cudaError_t add_positions(const Queue& queue, const PositionsTask& task) {
  return launch(queue, dim3(static_cast<unsigned>(task.tokens)), row_threads, 0, task.bf16 ? positions_kernel<bfloat16> : positions_kernel<float>, task);
}

cudaError_t norm(const Queue& queue, const NormTask& task) {
  return launch(queue, dim3(static_cast<unsigned>(task.rows)), row_threads, 0, task.bf16 ? norm_kernel<bfloat16> : norm_kernel<float>, task);
}

cudaError_t swiglu(const Queue& queue, const void* x, void* out, bool bf16, std::int64_t rows, std::int64_t width) {
  const dim3 grid(static_cast<unsigned>(rows));
  if (bf16) return launch(queue, grid, row_threads, 0, swiglu_kernel<bfloat16>, static_cast<const bfloat16*>(x), static_cast<bfloat16*>(out), width);
  return launch(queue, grid, row_threads, 0, swiglu_kernel<float>, static_cast<const float*>(x), static_cast<float*>(out), width);
}

cudaError_t append(const Queue& queue, const AppendTask& task) {
  const RingTask& r = task.ring;
  const dim3 grid(static_cast<unsigned>(r.tokens), static_cast<unsigned>(ceil_div<std::int64_t>(r.heads + 2 * r.kv_heads, warps)));
  return launch(queue, grid, row_threads, 0, r.bf16 ? append_kernel<bfloat16> : append_kernel<float>, task);
}

cudaError_t copy_rows(const Queue& queue, const CopyTask& task) {
  return launch(queue, dim3(static_cast<unsigned>(task.count), static_cast<unsigned>(task.kv_heads)), 32, 0, copy_rows_kernel, task);
}

}  // namespace kvmesh::cuda
