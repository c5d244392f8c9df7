// Products with packed weights. One output element is one chain of operations fixed by K alone: in bfloat16, tensor-core products of 16 k, summed in
// ascending order within spans of 256 k, and the spans' sums added up in ascending order; in float32, one chain of multiply-adds. Which of
// the kernels runs, and on how many rows, changes who does it and not what is done.
#include "runtime/cuda/tiles.h"

#include <type_traits>

namespace kvmesh::cuda {
namespace {

/// A launch's task: what only this file knows of the weight besides.
struct Task : LinearTask {
  const float* scales;  // [n]; null: none
};

__device__ __forceinline__ float finish(float sum, Epilogue epilogue, float old, float cap) {
  switch (epilogue) {
    case Epilogue::none: return sum;
    case Epilogue::add: return old + sum;
    case Epilogue::relu_squared: return sum > 0 ? sum * sum : 0.0f;
    case Epilogue::gelu: return gelu_f32(sum);
    case Epilogue::gelu_tanh: return gelu_tanh_f32(sum);
    default: return cap * tanh_f32(sum / cap);
  }
}

__device__ __forceinline__ void write_out(const Task& t, std::int64_t row, std::int64_t column, float sum) {
  if (row >= t.rows || column >= t.n) return;
  const std::int64_t at = row * t.stride + column;
  if (t.scales) sum = sum * t.scales[column];
  if (t.bias) sum = sum + t.bias[column];
  if (t.out_bf16) {
    bfloat16* out = static_cast<bfloat16*>(t.out) + at;
    *out = bfloat16(finish(sum, t.epilogue, t.epilogue == Epilogue::add ? to_float(*out) : 0.0f, t.cap));
  } else {
    float* out = static_cast<float*>(t.out) + at;
    *out = finish(sum, t.epilogue, t.epilogue == Epilogue::add ? *out : 0.0f, t.cap);
  }
}

/// acc += 32 k of rows g and g + 8 (`low`, `high`) times 8 columns.
__device__ __forceinline__ void multiply(float (&acc)[4], const uint4& low, const uint4& high, const uint4& w) {
  mma_bf16(acc, low.x, high.x, low.y, high.y, w.x, w.y);
  mma_bf16(acc, low.z, high.z, low.w, high.w, w.z, w.w);
}

/// Eight k of a row from k `at` on, zeros beyond the edges. `whole`: k is a multiple of 8.
template <bool whole>
__device__ __forceinline__ uint4 read_row(const LinearTask& t, std::int64_t row, std::int64_t at) {
  uint4 v{0, 0, 0, 0};
  if (row >= t.rows) return v;
  const bfloat16* x = static_cast<const bfloat16*>(t.x) + row * t.k + at;
  if constexpr (whole) {
    if (at < t.k) v = *reinterpret_cast<const uint4*>(x);
  } else {
    std::uint32_t words[4] = {};
    for (int i = 0; i < 8; ++i) {
      if (at + i < t.k) words[i / 2] |= static_cast<std::uint32_t>(x[i].bits) << (16 * (i % 2));
    }
    v = {words[0], words[1], words[2], words[3]};
  }
  return v;
}

// Few rows: what counts is how fast the weight is read. A block has 8 columns and 16 · row_tiles rows; its warps take spans in turn.
constexpr unsigned narrow_threads = 128;
constexpr int narrow_warps = narrow_threads / 32;

template <int row_tiles, bool whole, bool int8>
__global__ void __launch_bounds__(narrow_threads) narrow_kernel(Task t, std::int64_t room) {
  grid_dependency_launch();
  float* sums = reinterpret_cast<float*>(dynamic_shared());  // [room spans][row_tiles][32 lanes][4]
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
  const std::int64_t tiles = ceil_div(t.k, tile_k), spans = ceil_div(tiles, span_tiles), first_row = blockIdx.y * 16 * row_tiles;
  const auto* w = reinterpret_cast<const Stored<int8>*>(static_cast<const std::byte*>(t.w) + blockIdx.x * tiles * tile_bytes<int8>) + lane;
  const auto read_span = [&](std::int64_t span, Stored<int8> (&to)[span_tiles]) {
#pragma unroll
    for (int i = 0; i < span_tiles; ++i) {
      const std::int64_t tile = span * span_tiles + i;
      if (tile < tiles) to[i] = w[tile * 32];
    }
  };
  Stored<int8> weights[span_tiles] = {};
  if (warp < spans) read_span(warp, weights);  // no kernel that may still run writes weights (linear, below): these may be read before the wait
  grid_dependency_wait();

  float total[row_tiles] = {};
  for (std::int64_t base = 0; base < spans; base += room) {
    const std::int64_t end = base + room < spans ? base + room : spans;
    for (std::int64_t span = base + warp; span < end; span += narrow_warps) {
      Stored<int8> next[span_tiles] = {};
      const std::int64_t following = span + narrow_warps < end ? span + narrow_warps : end + warp;
      if (following < spans) read_span(following, next);
      float acc[row_tiles][4] = {};
#pragma unroll
      for (int i = 0; i < span_tiles; ++i) {
        const std::int64_t tile = span * span_tiles + i;
        if (tile >= tiles) break;
        const uint4 right = as_bf16(weights[i]);
#pragma unroll
        for (int r = 0; r < row_tiles; ++r) {
          const std::int64_t row = first_row + r * 16 + g, at = tile * tile_k + 8 * q;
          multiply(acc[r], read_row<whole>(t, row, at), read_row<whole>(t, row + 8, at), right);
        }
      }
      for (int r = 0; r < row_tiles; ++r) {
        for (int i = 0; i < 4; ++i) sums[(((span - base) * row_tiles + r) * 32 + lane) * 4 + i] = acc[r][i];
      }
      for (int i = 0; i < span_tiles; ++i) weights[i] = next[i];
    }
    __syncthreads();
    // Thread e has the element in row e / 8, column e % 8 of each row tile.
    const int row = static_cast<int>(threadIdx.x / 8), column = static_cast<int>(threadIdx.x % 8);
    const int at = (row % 8 * 4 + column / 2) * 4 + row / 8 * 2 + column % 2;
    for (std::int64_t span = base; span < end; ++span) {
      for (int r = 0; r < row_tiles; ++r) total[r] = total[r] + sums[((span - base) * row_tiles + r) * 128 + at];
    }
    __syncthreads();
  }
  for (int r = 0; r < row_tiles; ++r) write_out(t, first_row + r * 16 + threadIdx.x / 8, blockIdx.x * tile_columns + threadIdx.x % 8, total[r]);
}

// Many rows: blocks of 128 × 128 from shared memory, which a pipeline of three stages of 64 k fills. k is a multiple of 8.
constexpr unsigned wide_threads = 256;
constexpr int wide_rows = 128, wide_columns = 128, stages = 3, stage_tiles = 2;
constexpr std::size_t stage_x = wide_rows * stage_tiles * tile_k * 2;
template <bool int8>
constexpr std::size_t stage_w = wide_columns / tile_columns * stage_tiles * tile_bytes<int8>;
template <bool int8>
constexpr std::size_t wide_shared = stages * (stage_x + stage_w<int8>);  // 96 KiB at most: what every GPU has
static_assert(span_tiles % stage_tiles == 0);

template <bool int8>
__global__ void __launch_bounds__(wide_threads) wide_kernel(Task t) {
  grid_dependency_launch();
  std::byte* shared = dynamic_shared();
  const int warp = static_cast<int>(threadIdx.x / 32), lane = static_cast<int>(threadIdx.x % 32), g = lane / 4, q = lane % 4;
  const int warp_row = warp / 4 * 64, warp_tile = warp % 4 * 4;  // a warp has 64 rows and 4 tiles of columns
  const std::int64_t tiles = ceil_div(t.k, tile_k), column_tiles = ceil_div(t.n, tile_columns), steps = ceil_div<std::int64_t>(tiles, stage_tiles);
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.y) * wide_rows, first_tile = static_cast<std::int64_t>(blockIdx.x) * (wide_columns / tile_columns);

  // A stage: x [2 tiles of k][128 rows][32 k], then w [16 tiles of columns][2 tiles of k][8][32].
  constexpr std::size_t stage = stage_x + stage_w<int8>;
  constexpr int chunks = static_cast<int>(tile_bytes<int8> / 16);  // of a tile
  const auto fill = [&](std::int64_t step) {
    if (step < steps) {
      std::byte* x = shared + step % stages * stage;
      std::byte* w = x + stage_x;
      for (int c = static_cast<int>(threadIdx.x); c < static_cast<int>(stage_x / 16); c += wide_threads) {
        const int row = c / 8, tile = c % 8 / 4, part = c % 4;
        const std::int64_t k = (step * stage_tiles + tile) * tile_k + part * 8;
        const bool valid = first_row + row < t.rows && k < t.k;
        const bfloat16* from = static_cast<const bfloat16*>(t.x) + (valid ? (first_row + row) * t.k + k : 0);
        copy_16_async(x + (tile * wide_rows + row) * tile_k * 2 + part * 16, from, valid);
      }
      for (int c = static_cast<int>(threadIdx.x); c < static_cast<int>(stage_w<int8> / 16); c += wide_threads) {
        const int tile = c / (stage_tiles * chunks), within = c % (stage_tiles * chunks);
        const std::int64_t k = step * stage_tiles + within / chunks, column = first_tile + tile;
        const bool valid = column < column_tiles && k < tiles;
        const std::byte* from = static_cast<const std::byte*>(t.w) + (valid ? (column * tiles + k) * tile_bytes<int8> + within % chunks * 16 : 0);
        copy_16_async(w + tile * stage_tiles * tile_bytes<int8> + within * 16, from, valid);
      }
    }
    copy_async_commit();  // an empty one keeps the count
  };

  float total[4][4][4] = {}, acc[4][4][4] = {};
  const auto add_span = [&] {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
#pragma unroll
        for (int i = 0; i < 4; ++i) total[r][c][i] = total[r][c][i] + acc[r][c][i], acc[r][c][i] = 0;
      }
    }
  };
  grid_dependency_wait();
  for (int s = 0; s < stages - 1; ++s) fill(s);
  for (std::int64_t step = 0; step < steps; ++step) {
    copy_async_wait<stages - 2>();
    __syncthreads();  // this step's stage is there for all, and the one before it is free
    fill(step + stages - 1);
    const std::byte* x = shared + step % stages * stage;
    const std::byte* w = x + stage_x;
#pragma unroll
    for (int tile = 0; tile < stage_tiles; ++tile) {
      if (step * stage_tiles + tile >= tiles) break;
      uint4 right[4];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        right[c] = as_bf16(reinterpret_cast<const Stored<int8>*>(w + ((warp_tile + c) * stage_tiles + tile) * tile_bytes<int8>)[lane]);
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const std::byte* row = x + (tile * wide_rows + warp_row + r * 16 + g) * tile_k * 2 + q * 16;
        const uint4 low = *reinterpret_cast<const uint4*>(row), high = *reinterpret_cast<const uint4*>(row + 8 * tile_k * 2);
#pragma unroll
        for (int c = 0; c < 4; ++c) multiply(acc[r][c], low, high, right[c]);
      }
    }
    if ((step + 1) * stage_tiles % span_tiles == 0 || step + 1 == steps) add_span();
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        write_out(t, first_row + warp_row + r * 16 + g + i / 2 * 8, (first_tile + warp_tile + c) * tile_columns + 2 * q + i % 2, total[r][c][i]);
      }
    }
  }
}

// float32: 32 rows × 64 columns a block, 32 k at a time; a thread has 2 rows × 4 columns.
constexpr unsigned f32_threads = 256;
constexpr int f32_rows = 32, f32_k = 32;

template <bool int8>
__global__ void __launch_bounds__(f32_threads) f32_kernel(Task t) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ float xs[f32_k][f32_rows + 1];
  alignas(16) __shared__ float ws[f32_k][f32_columns];
  const int tid = static_cast<int>(threadIdx.x), row = tid / 16 * 2, column = tid % 16 * 4;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.y) * f32_rows;
  const float* x = static_cast<const float*>(t.x);
  using Element = std::conditional_t<int8, std::int8_t, float>;
  const Element* w = static_cast<const Element*>(t.w) + blockIdx.x * t.k * f32_columns;
  float sum[2][4] = {};
  for (std::int64_t k0 = 0; k0 < t.k; k0 += f32_k) {
    const int depth = static_cast<int>(t.k - k0 < f32_k ? t.k - k0 : f32_k);
    for (int i = tid; i < f32_rows * f32_k; i += f32_threads) {
      const int r = i / f32_k, k = i % f32_k;
      xs[k][r] = first_row + r < t.rows && k < depth ? x[(first_row + r) * t.k + k0 + k] : 0.0f;
    }
    for (int i = tid; i < depth * f32_columns; i += f32_threads) ws[i / f32_columns][i % f32_columns] = static_cast<float>(w[k0 * f32_columns + i]);
    __syncthreads();
    for (int k = 0; k < depth; ++k) {
      const float a = xs[k][row], b = xs[k][row + 1];
      const float4 c = *reinterpret_cast<const float4*>(&ws[k][column]);
      const float right[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sum[0][i] = fmaf(a, right[i], sum[0][i]);
        sum[1][i] = fmaf(b, right[i], sum[1][i]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int i = 0; i < 4; ++i) write_out(t, first_row + row + r, blockIdx.x * f32_columns + column + i, sum[r][i]);
  }
}

template <int row_tiles, bool int8>
cudaError_t narrow(const Queue& queue, const Task& t, std::int64_t column_tiles) {
  constexpr std::int64_t span_bytes = row_tiles * 128 * 4;  // of one span's sums
  const std::int64_t spans = ceil_div(ceil_div(t.k, tile_k), span_tiles), most = (48 << 10) / span_bytes;
  const std::int64_t room = spans < most ? spans : most;
  const dim3 grid(static_cast<unsigned>(column_tiles), static_cast<unsigned>(ceil_div<std::int64_t>(t.rows, 16 * row_tiles)));
  return launch(queue, grid, narrow_threads, static_cast<std::size_t>(room * span_bytes),
                t.k % 8 == 0 ? narrow_kernel<row_tiles, true, int8> : narrow_kernel<row_tiles, false, int8>, t, room);
}

template <bool int8>
cudaError_t linear_of(const Queue& queue, const Task& t) {
  if (!t.bf16) {
    const dim3 grid(static_cast<unsigned>(ceil_div(t.n, f32_columns)), static_cast<unsigned>(ceil_div<std::int64_t>(t.rows, f32_rows)));
    return launch(queue, grid, f32_threads, 0, f32_kernel<int8>, t);
  }
  const dim3 wide(static_cast<unsigned>(ceil_div<std::int64_t>(t.n, wide_columns)), static_cast<unsigned>(ceil_div<std::int64_t>(t.rows, wide_rows)));
  if (t.k % 8 == 0 && t.rows >= wide_rows && wide.x * wide.y >= static_cast<unsigned>(queue.multiprocessors)) {
    return launch(queue, wide, wide_threads, wide_shared<int8>, wide_kernel<int8>, t);
  }
  const std::int64_t column_tiles = ceil_div(t.n, tile_columns);
  if (t.rows <= 16) return narrow<1, int8>(queue, t, column_tiles);
  if (t.rows <= 32) return narrow<2, int8>(queue, t, column_tiles);
  return narrow<4, int8>(queue, t, column_tiles);
}

}  // namespace

cudaError_t linear(const Queue& queue_now, const LinearTask& t) {
  Queue queue = queue_now;
  if (queue.weights_written) queue.early_start = false;
  const WeightForm form = {t.bf16, t.int8, t.k, t.n};
  const Task task = {t, t.int8 ? reinterpret_cast<const float*>(static_cast<const std::byte*>(t.w) + element_bytes(form)) : nullptr};
  return t.int8 ? linear_of<true>(queue, task) : linear_of<false>(queue, task);
}

}  // namespace kvmesh::cuda
