// The backward passes of rows.cu's norms and RoPE, and of gathering: a block or a warp a row, each row's sums by one tree fixed by its width.
#include "runtime/cuda/device_code.h"
#include "runtime/cuda/train_kernels.h"

namespace kvmesh::cuda {
namespace {

constexpr unsigned row_threads = 128;
constexpr unsigned warps = row_threads / 32;

/// How dx of x · scale, scale = 1 / sqrt(mean(x²) + eps), is made of dy: scale · dy + along · x.
struct NormSlope {
  float scale, along;
  __device__ NormSlope(float squares, float products, std::int64_t width, float eps)
      : scale(inverse_rms(squares, width, eps)), along(-scale * scale * scale * products / static_cast<float>(width)) {}
  __device__ float operator()(float x, float dy) const { return fmaf(along, x, scale * dy); }
};

template <typename T>
__global__ void __launch_bounds__(row_threads) norm_backward_kernel(NormBackwardTask t) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ float parts[warps];
  const std::int64_t row = blockIdx.x * t.width;
  const T *x = static_cast<const T*>(t.x) + row, *dy = static_cast<const T*>(t.dy) + row;
  float squares = 0, products = 0;
  for (std::int64_t i = threadIdx.x; i < t.width; i += row_threads) {
    const float a = to_float(x[i]);
    squares = fmaf(a, a, squares);
    products = fmaf(a, to_float(dy[i]), products);
  }
  squares = block_sum<warps>(squares, parts);
  const NormSlope slope(squares, block_sum<warps>(products, parts), t.width, t.eps);
  for (std::int64_t i = threadIdx.x; i < t.width; i += row_threads) {
    const float sum = t.dx[row + i] + slope(to_float(x[i]), to_float(dy[i]));
    t.dx[row + i] = sum;
    if (t.rounded) static_cast<bfloat16*>(t.rounded)[row + i] = bfloat16(sum);
  }
}

/// One head of a query or key by a warp: back through RoPE where there is a table [head_dim], then through the norm.
template <typename T>
__device__ void norm_rope_backward(const T* x, const T* dy, T* dx, std::int64_t width, const float* rope, float eps, int lane) {
  const std::int64_t half = width / 2;
  const auto turned_back = [&](std::int64_t i, float& a, float& b) {
    a = to_float(dy[i]);
    b = to_float(dy[i + half]);
    if (!rope) return;
    const float cos = rope[i], sin = rope[i + half], turned = a * cos + b * sin;
    b = b * cos - a * sin;
    a = turned;
  };
  float squares = 0, products = 0;
  for (std::int64_t i = lane; i < half; i += 32) {
    const float p = to_float(x[i]), q = to_float(x[i + half]);
    float a, b;
    turned_back(i, a, b);
    squares = fmaf(q, q, fmaf(p, p, squares));
    products = fmaf(q, b, fmaf(p, a, products));
  }
  squares = warp_sum(squares);
  const NormSlope slope(squares, warp_sum(products), width, eps);
  for (std::int64_t i = lane; i < half; i += 32) {
    float a, b;
    turned_back(i, a, b);
    dx[i] = from_float<T>(slope(to_float(x[i]), a));
    dx[i + half] = from_float<T>(slope(to_float(x[i + half]), b));
  }
}

template <typename T>
__global__ void __launch_bounds__(row_threads) append_backward_kernel(AppendBackwardTask task) {
  grid_dependency_launch();
  grid_dependency_wait();
  const RingTask& r = task.ring;
  const std::int64_t t = blockIdx.x, h = r.head_dim, head = blockIdx.y * warps + threadIdx.x / 32, all = r.heads + 2 * r.kv_heads, keys = r.heads + r.kv_heads;
  const std::int32_t run = r.run_of[t];
  if (run < 0 || head >= all) return;
  const Segment s = r.segments[run];
  const float* rope = task.rope ? task.rope + (s.begin + (t - s.offset) - s.start) * h : nullptr;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const T* x = static_cast<const T*>(task.qkv) + (t * all + head) * h;
  T* dx = static_cast<T*>(task.dqkv) + (t * all + head) * h;
  if (head < r.heads) {
    norm_rope_backward(x, static_cast<const T*>(task.dq) + (t * r.heads + head) * h, dx, h, rope, task.eps, lane);
  } else if (head < keys) {
    norm_rope_backward(x, static_cast<const T*>(task.dk) + (t * r.kv_heads + head - r.heads) * h, dx, h, rope, task.eps, lane);
  } else {
    const T* dv = static_cast<const T*>(task.dv) + (t * r.kv_heads + head - keys) * h;
    for (std::int64_t i = lane; i < h; i += 32) dx[i] = dv[i];
  }
}

/// Block t adds the rows of all tokens that have token t's id, in their order, if t is the first of them. A thread has columns of its own.
__global__ void __launch_bounds__(row_threads) scatter_kernel(const std::int32_t* ids, const float* dx, std::int64_t tokens, std::int64_t width, float* table) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t own = blockIdx.x, lane = threadIdx.x % 32;
  const std::int32_t id = ids[own];
  const auto equal = [&](std::int64_t t, std::int64_t end) { return __ballot_sync(all_lanes, t + lane < end && ids[t + lane] == id); };
  for (std::int64_t t = 0; t < own; t += 32) {
    if (equal(t, own) != 0) return;
  }
  for (std::int64_t t = own; t < tokens; t += 32) {
    for (unsigned found = equal(t, tokens); found != 0; found &= found - 1) {
      const float* from = dx + (t + __ffs(static_cast<int>(found)) - 1) * width;
      for (std::int64_t i = threadIdx.x; i < width; i += row_threads) table[id * width + i] = table[id * width + i] + from[i];
    }
  }
}

}  // namespace

cudaError_t norm_backward(const Queue& queue, const NormBackwardTask& task) {
  return launch(queue, dim3(static_cast<unsigned>(task.rows)), row_threads, 0, task.bf16 ? norm_backward_kernel<bfloat16> : norm_backward_kernel<float>, task);
}

cudaError_t append_backward(const Queue& queue, const AppendBackwardTask& task) {
  const RingTask& r = task.ring;
  const dim3 grid(static_cast<unsigned>(r.tokens), static_cast<unsigned>(ceil_div<std::int64_t>(r.heads + 2 * r.kv_heads, warps)));
  return launch(queue, grid, row_threads, 0, r.bf16 ? append_backward_kernel<bfloat16> : append_backward_kernel<float>, task);
}

cudaError_t scatter_rows(const Queue& queue, const std::int32_t* ids, const float* dx, std::int64_t tokens, std::int64_t width, float* table) {
  return launch(queue, dim3(static_cast<unsigned>(tokens)), row_threads, 0, scatter_kernel, ids, dx, tokens, width, table);
}

}  // namespace kvmesh::cuda
