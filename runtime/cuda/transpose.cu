// Training's operands in other layouts: transposed, and packed as tiles.h lays weights, from the device's memory to the device's memory.
#include "runtime/cuda/tiles.h"
#include "runtime/cuda/train_kernels.h"

namespace kvmesh::cuda {
namespace {

constexpr unsigned threads = 256;
constexpr int side = 32;  // of what a block turns

template <typename From, typename To>
__global__ void __launch_bounds__(threads) transpose_kernel(const From* x, std::int64_t rows, std::int64_t columns, To* out, std::int64_t column_blocks) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ float block[side][side + 1];
  const int lane = static_cast<int>(threadIdx.x % side), line = static_cast<int>(threadIdx.x / side);
  const std::int64_t row = blockIdx.x / column_blocks * side, column = blockIdx.x % column_blocks * side;
  for (int i = line; i < side; i += static_cast<int>(threads) / side) {
    if (row + i < rows && column + lane < columns) block[i][lane] = to_float(x[(row + i) * columns + column + lane]);
  }
  __syncthreads();
  for (int i = line; i < side; i += static_cast<int>(threads) / side) {
    if (column + i < columns && row + lane < rows) out[(column + i) * rows + row + lane] = from_float<To>(block[lane][i]);
  }
}

/// A thread has what a lane of a product reads of a tile: eight successive k of a column.
template <typename From>
__global__ void __launch_bounds__(threads) pack_kernel(const From* source, std::int64_t k, std::int64_t n, uint4* target, std::int64_t count) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (at >= count) return;
  const std::int64_t tile = at / 32, lane = at % 32, tiles = ceil_div(k, tile_k), column = tile / tiles * tile_columns + lane / 4, first = tile % tiles * tile_k + lane % 4 * 8;
  std::uint32_t words[4] = {};
  for (int i = 0; i < 8; ++i) {
    if (column < n && first + i < k) words[i / 2] |= static_cast<std::uint32_t>(bfloat16(to_float(source[(first + i) * n + column])).bits) << (16 * (i % 2));
  }
  target[at] = {words[0], words[1], words[2], words[3]};
}

template <typename From>
__global__ void __launch_bounds__(threads) pack_f32_kernel(const From* source, std::int64_t k, std::int64_t n, float* target, std::int64_t count) {
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (at >= count) return;
  const std::int64_t column = at / (k * f32_columns) * f32_columns + at % f32_columns, row = at / f32_columns % k;
  target[at] = column < n ? to_float(source[row * n + column]) : 0.0f;
}

__global__ void __launch_bounds__(threads) mirror_kernel(const float* columns, std::int64_t from, std::int64_t width, float* out, std::int64_t n, std::int64_t column_blocks) {
  grid_dependency_launch();
  grid_dependency_wait();
  __shared__ float block[side][side + 1];
  const int lane = static_cast<int>(threadIdx.x % side), line = static_cast<int>(threadIdx.x / side);
  const std::int64_t row = blockIdx.x / column_blocks * side, column = blockIdx.x % column_blocks * side;
  for (int i = line; i < side; i += static_cast<int>(threads) / side) {
    if (row + i >= from + width || column + lane >= width) continue;
    out[(row + i) * n + from + column + lane] = block[i][lane] = columns[(row + i) * width + column + lane];
  }
  __syncthreads();
  for (int i = line; i < side; i += static_cast<int>(threads) / side) {
    if (column + i < width && row + lane < from) out[(from + column + i) * n + row + lane] = block[lane][i];
  }
}

unsigned blocks_of(std::int64_t count) { return static_cast<unsigned>(ceil_div<std::int64_t>(count, threads)); }

template <typename From>
cudaError_t pack_from(const Queue& queue, const From* source, const WeightForm& w, void* target) {
  if (w.bf16) {
    const std::int64_t count = element_bytes(w) / 16;
    return launch(queue, blocks_of(count), threads, 0, pack_kernel<From>, source, w.k, w.n, static_cast<uint4*>(target), count);
  }
  const std::int64_t count = element_bytes(w) / 4;
  return launch(queue, blocks_of(count), threads, 0, pack_f32_kernel<From>, source, w.k, w.n, static_cast<float*>(target), count);
}

template <typename From, typename To>
cudaError_t transpose_of(const Queue& queue, const void* x, std::int64_t rows, std::int64_t columns, void* out) {
  const std::int64_t column_blocks = ceil_div<std::int64_t>(columns, side);
  return launch(queue, static_cast<unsigned>(ceil_div<std::int64_t>(rows, side) * column_blocks), threads, 0, transpose_kernel<From, To>, static_cast<const From*>(x), rows, columns,
                static_cast<To*>(out), column_blocks);
}

}  // namespace

cudaError_t pack(const Queue& queue, const void* source, bool source_bf16, const WeightForm& form, void* target) {
  return source_bf16 ? pack_from(queue, static_cast<const bfloat16*>(source), form, target) : pack_from(queue, static_cast<const float*>(source), form, target);
}

cudaError_t mirror(const Queue& queue, const float* columns, std::int64_t from, std::int64_t width, float* out, std::int64_t n) {
  const std::int64_t column_blocks = ceil_div<std::int64_t>(width, side);
  return launch(queue, static_cast<unsigned>(ceil_div<std::int64_t>(from + width, side) * column_blocks), threads, 0, mirror_kernel, columns, from, width, out, n, column_blocks);
}

cudaError_t transpose(const Queue& queue, const void* x, bool bf16, std::int64_t rows, std::int64_t columns, void* out, bool out_bf16) {
  if (bf16) return out_bf16 ? transpose_of<bfloat16, bfloat16>(queue, x, rows, columns, out) : transpose_of<bfloat16, float>(queue, x, rows, columns, out);
  return out_bf16 ? transpose_of<float, bfloat16>(queue, x, rows, columns, out) : transpose_of<float, float>(queue, x, rows, columns, out);
}

}  // namespace kvmesh::cuda
