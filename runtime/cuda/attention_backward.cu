// Attention, backwards, after FlashAttention-2 (Dao, arXiv 2307.08691): scores are computed again, in one pass for each query's facts, in one that sums dq over
// keys and in one that sums dk and dv over queries. A tile of rows meets blocks of columns in ascending order, both counted from the segment's first token, so
// that nothing depends on who else is in the pass and no two blocks add to the same sum. In bfloat16 tensor cores multiply, of weights and slopes rounded once.
#include "runtime/cuda/attention_tiles.h"
#include "runtime/cuda/train_kernels.h"

namespace kvmesh::cuda {
namespace {

/// Shared memory, in bytes; `head`: head_dim rounded up, the rest zeros. Of two matrices a tile of rows, and a block of columns.
template <typename T, int head>
struct Layout {
  static constexpr bool bf16 = sizeof(T) == 2;
  static constexpr int warps = (bf16 ? 4 : 2) / (head <= 128 ? 1 : 2), threads = warps * 32, rows = warps * warp_rows, columns = bf16 ? 32 : 16;
  static constexpr int stride = head * static_cast<int>(sizeof(T)) + (bf16 && head % 64 == 0 ? 80 : 16);  // few of a warp's reads meet in a bank
  static constexpr int x = 0, y = x + rows * stride, u = y + rows * stride, w = u + columns * stride;
  static constexpr int facts = w + columns * stride;      // f32 [columns][3]
  static constexpr int scratch = facts + columns * 3 * 4;  // f32 [warps][16][columns], of float32 only
  static constexpr int bytes = scratch + (bf16 ? 0 : rows * columns * 4);
  static constexpr int width = head <= 128 ? head : 128;  // output columns of a block; blockIdx.z says which
  static_assert(bytes <= 99 << 10);                       // what every GPU has
};

/// Of a query: its largest score, 1 / sum of exp(score - the largest), and out · dout.
struct Facts {
  float largest, inverse, delta;
};

/// One block's segment, and where its rows lie.
template <typename T>
struct Rows {
  const AttentionBackwardTask& t;
  const Segment s;
  const std::int64_t h, group, kv_head;

  __device__ Rows(const AttentionBackwardTask& task, std::int64_t segment, std::int64_t kv)
      : t(task), s(task.ring.segments[segment]), h(task.ring.head_dim), group(task.ring.heads / task.ring.kv_heads), kv_head(kv) {}

  __device__ const T* key(const void* ring, std::int64_t i) const {
    return static_cast<const T*>(ring) + ((s.place * t.ring.kv_heads + kv_head) * t.ring.size + s.begin % t.ring.size + i) * h;
  }
  /// The (token, head) pair's place in what has a row for each.
  __device__ std::int64_t pair(std::int64_t head, std::int64_t i) const { return (s.offset + i) * t.ring.heads + head; }
  __device__ const T* query(const void* x, std::int64_t head, std::int64_t i) const { return static_cast<const T*>(x) + pair(head, i) * h; }
  __device__ float scale() const { return 1.0f / sqrtf(static_cast<float>(h)); }
  __device__ bool sees(std::int64_t query, std::int64_t key) const { return query < s.count && key <= query && (t.window < 0 || key >= query - t.window); }
  /// The first key that queries from `query` on see.
  __device__ std::int64_t oldest(std::int64_t query) const { return t.window < 0 || query < t.window ? 0 : query - t.window; }
};

template <typename T, int head>
__global__ void __launch_bounds__(Layout<T, head>::threads) facts_kernel(AttentionBackwardTask task, std::int64_t tiles) {
  using L = Layout<T, head>;
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t first = blockIdx.x % tiles * L::rows, q_head = blockIdx.y;
  const Rows<T> rows(task, blockIdx.x / tiles, q_head / (task.ring.heads / task.ring.kv_heads));
  const std::int64_t count = rows.s.count;
  if (first >= count) return;
  const Lane lane;
  std::byte* shared = dynamic_shared();
  fill_rows<T, head, L::threads>(shared + L::x, L::stride, L::rows, 0, count - first, rows.h, [&](std::int64_t i) { return rows.query(task.q, q_head, first + i); });
  Softmax softmax;
  const std::int64_t last = first + L::rows < count ? first + L::rows : count;
  for (std::int64_t block = rows.oldest(first) / L::columns; block * L::columns < last; ++block) {
    __syncthreads();  // the block before has been read
    fill_rows<T, head, L::threads>(shared + L::u, L::stride, L::columns, 0, count - block * L::columns, rows.h,
                                   [&](std::int64_t i) { return rows.key(task.ring.k, block * L::columns + i); });
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    float score[L::columns / 8][4] = {}, decay[2];
    dots<T, head>(lane, shared + L::x + lane.warp * warp_rows * L::stride, shared + L::u, L::stride, rows.h, score);
    softmax.add(lane, rows.scale(), [&](int half, int j) { return rows.sees(first + lane.row(half), block * L::columns + j); }, score, decay);
  }
  softmax.gather_sums();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const std::int64_t query = first + lane.row(half);
    if (query >= count || lane.q != 0) continue;
    float* to = task.facts + rows.pair(q_head, query) * 3;
    to[0] = softmax.largest[half];
    to[1] = 1.0f / softmax.sum[half];
  }
  for (int i = 0; i < warp_rows; ++i) {
    const std::int64_t query = first + lane.warp * warp_rows + i;
    if (query >= count) break;
    const T *out = rows.query(task.out, q_head, query), *dout = rows.query(task.dout, q_head, query);
    float delta = 0;
    for (std::int64_t d = lane.lane; d < rows.h; d += 32) delta = fmaf(to_float(out[d]), to_float(dout[d]), delta);
    delta = warp_sum(delta);
    if (lane.lane == 0) task.facts[rows.pair(q_head, query) * 3 + 2] = delta;
  }
}

/// `keys`: the rows are keys and values, the columns queries and dout of all heads of a group, and the sums dk and dv; else the rows are queries and dout of
/// one head, the columns keys and values, and the sum dq.
template <typename T, int head, bool keys>
__global__ void __launch_bounds__(Layout<T, head>::threads) slopes_kernel(AttentionBackwardTask task, std::int64_t tiles) {
  using L = Layout<T, head>;
  grid_dependency_launch();
  grid_dependency_wait();
  const std::int64_t first = blockIdx.x % tiles * L::rows, group = task.ring.heads / task.ring.kv_heads;
  const Rows<T> rows(task, blockIdx.x / tiles, keys ? blockIdx.y : blockIdx.y / group);
  const std::int64_t count = rows.s.count, last = first + L::rows < count ? first + L::rows : count;
  if (first >= count) return;
  const Lane lane;
  std::byte* shared = dynamic_shared();
  float* const column_facts = reinterpret_cast<float*>(shared + L::facts);
  float* const scratch = reinterpret_cast<float*>(shared + L::scratch) + (L::bf16 ? 0 : lane.warp * warp_rows * L::columns);
  const int own = lane.warp * warp_rows * L::stride, part = static_cast<int>(blockIdx.z) * L::width;
  const float scale = rows.scale();
  const std::int64_t head_begin = keys ? rows.kv_head * group : blockIdx.y, head_end = keys ? head_begin + group : head_begin + 1;
  const std::int64_t begin = (keys ? first : rows.oldest(first)) / L::columns;
  const std::int64_t end = !keys ? last : task.window < 0 || last + task.window > count ? count : last + task.window;  // of columns
  float sum[L::width / 8][4] = {}, of_values[keys ? L::width / 8 : 1][4] = {};
  Facts own_facts[2] = {};

  const auto fill = [&](int at, int n, std::int64_t from, const auto& address) {
    fill_rows<T, head, L::threads>(shared + at, L::stride, n, 0, count - from, rows.h, [&](std::int64_t i) { return address(from + i); });
  };
  const auto fill_keys = [&](int x, int y, int n, std::int64_t from) {
    fill(x, n, from, [&](std::int64_t i) { return rows.key(task.ring.k, i); });
    fill(y, n, from, [&](std::int64_t i) { return rows.key(task.ring.v, i); });
  };
  const auto fill_queries = [&](int x, int y, int n, std::int64_t from, std::int64_t q_head) {
    fill(x, n, from, [&](std::int64_t i) { return rows.query(task.q, q_head, i); });
    fill(y, n, from, [&](std::int64_t i) { return rows.query(task.dout, q_head, i); });
  };
  if constexpr (keys) {
    fill_keys(L::x, L::y, L::rows, first);
  } else {
    fill_queries(L::x, L::y, L::rows, first, head_begin);
    for (int half = 0; half < 2; ++half) {
      const std::int64_t query = first + lane.row(half);
      const float* from = task.facts + rows.pair(head_begin, query < count ? query : first) * 3;
      own_facts[half] = {from[0], from[1], from[2]};
    }
  }

  for (std::int64_t q_head = head_begin; q_head < head_end; ++q_head) {
    for (std::int64_t block = begin; block * L::columns < end; ++block) {
      const std::int64_t column = block * L::columns;
      __syncthreads();  // the block before has been read
      if constexpr (keys) {
        fill_queries(L::u, L::w, L::columns, column, q_head);
        for (int i = static_cast<int>(threadIdx.x); i < L::columns * 3; i += L::threads) {
          column_facts[i] = column + i / 3 < count ? task.facts[rows.pair(q_head, column + i / 3) * 3 + i % 3] : 0.0f;
        }
      } else {
        fill_keys(L::u, L::w, L::columns, column);
      }
      copy_async_commit();
      copy_async_wait<0>();
      __syncthreads();
      float weight[L::columns / 8][4] = {}, slope[L::columns / 8][4] = {};
      dots<T, head>(lane, shared + L::x + own, shared + L::u, L::stride, rows.h, weight);
      dots<T, head>(lane, shared + L::y + own, shared + L::w, L::stride, rows.h, slope);
#pragma unroll
      for (int n = 0; n < L::columns / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int j = lane.column(n, i % 2);
          const std::int64_t of_row = first + lane.row(i / 2), of_column = column + j;
          const Facts f = keys ? Facts{column_facts[3 * j], column_facts[3 * j + 1], column_facts[3 * j + 2]} : own_facts[i / 2];
          const bool seen = keys ? rows.sees(of_column, of_row) : rows.sees(of_row, of_column);
          const float p = seen ? exp_f32(weight[n][i] * scale - f.largest) * f.inverse : 0.0f;
          slope[n][i] = seen ? scale * (p * (slope[n][i] - f.delta)) : 0.0f;
          weight[n][i] = p;
        }
      }
      add_products<T, 1>(lane, slope, shared + L::u + part * static_cast<int>(sizeof(T)), L::stride, scratch, sum);
      if constexpr (keys) add_products<T, 1>(lane, weight, shared + L::w + part * static_cast<int>(sizeof(T)), L::stride, scratch, of_values);
    }
  }

  const auto write = [&](void* to, const auto& x) {
#pragma unroll
    for (int n = 0; n < L::width / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::int64_t token = first + lane.row(i / 2), d = part + lane.column(n, i % 2);
        const std::int64_t row = keys ? (rows.s.offset + token) * task.ring.kv_heads + rows.kv_head : rows.pair(head_begin, token);
        if (token < count && d < rows.h) static_cast<T*>(to)[row * rows.h + d] = from_float<T>(x[n][i]);
      }
    }
  };
  if constexpr (keys) {
    write(task.dk, sum);
    write(task.dv, of_values);
  } else {
    write(task.dq, sum);
  }
}

template <typename T, int head>
cudaError_t start(const Queue& queue, const AttentionBackwardTask& task) {
  using L = Layout<T, head>;
  const std::int64_t tiles = ceil_div<std::int64_t>(task.longest, L::rows);
  const auto blocks = static_cast<unsigned>(task.segments * tiles), heads = static_cast<unsigned>(task.ring.heads), kv_heads = static_cast<unsigned>(task.ring.kv_heads);
  constexpr unsigned parts = head / L::width;
  cudaError_t status = launch(queue, dim3(blocks, heads), L::threads, static_cast<std::size_t>(L::bytes), facts_kernel<T, head>, task, tiles);
  if (status == cudaSuccess) status = launch(queue, dim3(blocks, heads, parts), L::threads, static_cast<std::size_t>(L::bytes), slopes_kernel<T, head, false>, task, tiles);
  if (status == cudaSuccess) status = launch(queue, dim3(blocks, kv_heads, parts), L::threads, static_cast<std::size_t>(L::bytes), slopes_kernel<T, head, true>, task, tiles);
  return status;
}

}  // namespace

cudaError_t attention_backward(const Queue& queue, const AttentionBackwardTask& task) {
  return start_for_head(task.ring.head_dim, [&]<int head>() { return task.ring.bf16 ? start<bfloat16, head>(queue, task) : start<float, head>(queue, task); });
}

}  // namespace kvmesh::cuda
