// Attention of a group of query heads over one key head. Keys are taken in blocks of 64 and chunks of 256, counted from the row's first key: within
// a chunk with a running maximum and sum, and the chunks' results are folded in ascending order. That rule is the same for a token that is decoded
// (its chunks then go to several blocks, and the last of them folds) and for one that is prefilled with others: what a query may not see has
// weight 0, which changes no bit. Source: Dao et al., "FlashAttention" (2022).
// In bfloat16 tensor cores multiply; a weight enters as two bfloat16, what the first leaves over being the second's: 16 bits of it.
#include "runtime/cuda/attention_chunks.h"
#include "runtime/cuda/attention_confine.h"

namespace kvmesh::cuda {
namespace {

/// Shared memory, in bytes; `head`: head_dim rounded up, the rest zeros. Strides such that a warp's reads meet no bank twice.
template <typename T, int head, int warps>
struct Layout {
  static constexpr bool bf16 = sizeof(T) == 2;
  static constexpr int threads = warps * 32, rows = warps * warp_rows;  // (token, head) pairs of a tile
  static constexpr int k_stride = bf16 ? head * 2 + (head % 64 == 0 ? 64 : 0) : head * 4 + 16;
  static constexpr int v_stride = head * static_cast<int>(sizeof(T)) + 16;
  static constexpr int stages = bf16 && head <= 96 ? 2 : 1;  // 99 KiB in all, but for float32 heads beyond 128: what every GPU has
  static constexpr int stage = block_keys * (k_stride + v_stride);
  static constexpr int q = 0;                               // [rows] of k_stride
  static constexpr int kv = q + rows * k_stride;            // [stages]: keys, then values
  static constexpr int folded = kv + stages * stage;        // f32 [warps][head / 8 · 4][32 lanes]
  static constexpr int weights = folded + rows * head * 4;  // f32 [warps][16][64], of float32 only
  static constexpr int bytes = weights + (bf16 ? 0 : rows * block_keys * 4);
};

template <typename T, int head, int warps>
class Tile {
  using L = Layout<T, head, warps>;

 public:
  __device__ __forceinline__ Tile(const AttentionTask& task, int splits)
      : t_(task), partials_{task.partial, splits, task.ring.head_dim}, shared_(dynamic_shared()), group_(task.ring.heads / task.ring.kv_heads) {}

  /// Tokens [token, token + tokens) of segment s.
  __device__ __forceinline__ void run(const Segment& s, std::int64_t token, std::int64_t tokens) {
    const std::int64_t h = t_.ring.head_dim;
    const std::int64_t first = s.begin - s.start + (token - s.offset);  // the first token's own key
    const std::int64_t ring = (s.place * t_.ring.kv_heads + blockIdx.y) * t_.ring.size * h;
    k_ = static_cast<const T*>(t_.ring.k) + ring;
    v_ = static_cast<const T*>(t_.ring.v) + ring;
    std::int64_t chunks = 0;
    for (std::int64_t row0 = 0; row0 < tokens * group_; row0 += L::rows) {
      const std::int64_t rows = tokens * group_ - row0 < L::rows ? tokens * group_ - row0 : L::rows;
      keys_ = first + (row0 + rows - 1) / group_ + 1;
      newest_of_all_ = first + row0 / group_;
      oldest_ = oldest_for(newest_of_all_);
#pragma unroll
      for (int half = 0; half < 2; ++half) own_[half] = lane_.row(half) < rows ? first + (row0 + lane_.row(half)) / group_ : -1;
      std::int64_t begin = oldest_ / block_keys, end = ceil_div<std::int64_t>(keys_, block_keys);
      const std::int64_t first_chunk = begin / chunk_blocks;
      chunks = ceil_div<std::int64_t>(end, chunk_blocks) - first_chunk;
      const bool alone = partials_.splits == 1 || chunks == 1;
      if (blockIdx.z >= (alone ? 1 : chunks)) return;
      if (!alone) {
        const std::int64_t chunk = (first_chunk + blockIdx.z) * chunk_blocks;
        begin = begin > chunk ? begin : chunk;
        end = end < chunk + chunk_blocks ? end : chunk + chunk_blocks;
      }
      __syncthreads();  // the rows before are done with shared memory
      const T* q = static_cast<const T*>(t_.q);
      fill_rows<T, head, L::threads>(shared_ + L::q, L::k_stride, L::rows, 0, rows, h, [&](std::int64_t r) { return q + pair_of(token, row0 + r) * h; });
      attend(s, begin, end, alone);
      if (alone) write_out(token, row0);
      else write_partials(token, row0);
    }
    if (partials_.splits > 1 && chunks > 1) fold_partials(token, chunks);
  }

 private:
  const AttentionTask& t_;
  const Partials partials_;  // where a token's chunks go to several blocks: `splits` of them at most
  std::byte* shared_;
  const std::int64_t group_;
  const Lane lane_;
  const T *k_ = nullptr, *v_ = nullptr;
  std::int64_t keys_ = 0;           // of which the tile's last query sees the last
  std::int64_t oldest_ = 0;         // the first key that its first query sees
  std::int64_t newest_of_all_ = 0;  // the last one that it sees, and with it all
  std::int64_t own_[2];             // key of the lane's two queries; -1: no query
  Softmax softmax_;                 // of the chunk, as the next
  float out_[head / 8][4];
  float folded_largest_[2], folded_sum_[2];  // of the chunks before; their output is in shared memory

  /// The (token, head) pair's row in q and out.
  __device__ std::int64_t pair_of(std::int64_t token, std::int64_t row) const { return (token + row / group_) * t_.ring.heads + blockIdx.y * group_ + row % group_; }

  __device__ std::int64_t oldest_for(std::int64_t own) const { return t_.window < 0 || own < t_.window ? 0 : own - t_.window; }

  __device__ std::byte* keys_at(std::int64_t block) const { return shared_ + L::kv + static_cast<int>(block % L::stages) * L::stage; }
  __device__ std::byte* values_at(std::int64_t block) const { return keys_at(block) + block_keys * L::k_stride; }

  __device__ __forceinline__ void fill_block(const Segment& s, std::int64_t block) {
    const std::int64_t key = block * block_keys, size = t_.ring.size, first = (s.start + key) % size, valid = keys_ - key, h = t_.ring.head_dim;
    const auto slot = [=](std::int64_t j) { return (first + j < size ? first + j : first + j - size) * h; };
    fill_rows<T, head, L::threads>(keys_at(block), L::k_stride, block_keys, oldest_ - key, valid, h, [&](std::int64_t j) { return k_ + slot(j); });
    fill_rows<T, head, L::threads>(values_at(block), L::v_stride, block_keys, oldest_ - key, valid, h, [&](std::int64_t j) { return v_ + slot(j); });
  }

  /// Blocks [begin, end) of keys; the last chunk is folded too where the tile is `alone`.
  __device__ __forceinline__ void attend(const Segment& s, std::int64_t begin, std::int64_t end, bool alone) {
    const float scale = 1.0f / sqrtf(static_cast<float>(t_.ring.head_dim));
    float* const scratch = reinterpret_cast<float*>(shared_ + L::weights) + (L::bf16 ? 0 : lane_.warp * warp_rows * block_keys);
#pragma unroll
    for (int half = 0; half < 2; ++half) folded_largest_[half] = -infinity, folded_sum_[half] = 0;
#pragma unroll
    for (int i = 0; i < head / 8 * 4; ++i) folded(i) = 0;
    new_chunk();
    if (L::stages == 2) fill_block(s, begin);
    copy_async_commit();
    for (std::int64_t block = begin; block < end; ++block) {
      if (L::stages == 1) {
        fill_block(s, block);
      } else if (block + 1 < end) {
        fill_block(s, block + 1);
      }
      copy_async_commit();
      copy_async_wait<L::stages - 1>();
      __syncthreads();
      const std::int64_t newest[2] = {own_[0] - block * block_keys, own_[1] - block * block_keys};
      const auto sees = [&](int half, int key) { return key <= newest[half] && (t_.window < 0 || key >= newest[half] - t_.window); };
      float score[block_keys / 8][4] = {}, decay[2];
      dots<T, head>(lane_, shared_ + L::q + lane_.warp * warp_rows * L::k_stride, keys_at(block), L::k_stride, t_.ring.head_dim, score);
      softmax_.add(lane_, scale, sees, score, decay);
#pragma unroll
      for (auto& eight : out_) {
#pragma unroll
        for (int i = 0; i < 4; ++i) eight[i] *= decay[i / 2];
      }
      std::byte* const values = values_at(block);
      if (!all_see(block) && __syncthreads_or(not_finite<T, head, L::threads>(values, L::v_stride, block_keys))) {
        confine<T, head, L::threads>(lane_, values, L::v_stride, block_keys, sees, out_);
      }
      add_products<T, 2>(lane_, score, values, L::v_stride, scratch, out_);
      __syncthreads();
      if (alone && ((block + 1) % chunk_blocks == 0 || block + 1 == end)) fold_chunk();
    }
  }

  /// Whether every query of the tile sees every key of the block that is not zeros.
  __device__ __forceinline__ bool all_see(std::int64_t block) const {
    const std::int64_t key = block * block_keys, first = key > oldest_ ? key : oldest_, end = key + block_keys < keys_ ? key + block_keys : keys_;
    return end - 1 <= newest_of_all_ && first >= oldest_for(keys_ - 1);
  }

  __device__ __forceinline__ void new_chunk() {
    softmax_ = {};
#pragma unroll
    for (auto& eight : out_) {
#pragma unroll
      for (float& x : eight) x = 0;
    }
  }

  __device__ __forceinline__ float& folded(int i) const { return reinterpret_cast<float*>(shared_ + L::folded)[(lane_.warp * (head / 8 * 4) + i) * 32 + lane_.lane]; }

  __device__ __forceinline__ void fold_chunk() {
    softmax_.gather_sums();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Fold fold(folded_largest_[half], softmax_.largest[half]);
      folded_sum_[half] = fold(folded_sum_[half], softmax_.sum[half]);
#pragma unroll
      for (int n = 0; n < head / 8; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) folded(4 * n + i) = fold(folded(4 * n + i), out_[n][i]);
      }
    }
    new_chunk();
  }

  __device__ __forceinline__ void write_out(std::int64_t token, std::int64_t row0) {
#pragma unroll
    for (int i = 0; i < head / 8 * 4; ++i) {
      const int half = i % 4 / 2, column = lane_.column(i / 4, i % 2);
      if (own_[half] < 0 || column >= t_.ring.head_dim) continue;
      static_cast<T*>(t_.out)[pair_of(token, row0 + lane_.row(half)) * t_.ring.head_dim + column] = from_float<T>(folded(i) / folded_sum_[half]);
    }
  }

  __device__ __forceinline__ void write_partials(std::int64_t token, std::int64_t row0) {
    softmax_.gather_sums();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (own_[half] >= 0) partials_.write(pair_of(token, row0 + lane_.row(half)), blockIdx.z, lane_, half, softmax_, out_);
    }
  }

  /// Of the blocks that have the token's chunks, the last to come here folds them. Only decoded tokens are split: one a segment.
  __device__ __forceinline__ void fold_partials(std::int64_t token, std::int64_t chunks) {
    if (!last_to_arrive(t_.arrived + token * t_.ring.kv_heads + blockIdx.y, chunks)) return;
    const std::int64_t h = t_.ring.head_dim;
    for (std::int64_t i = threadIdx.x; i < group_ * h; i += L::threads) {
      const std::int64_t pair = pair_of(token, i / h), column = i % h;
      static_cast<T*>(t_.out)[pair * h + column] = from_float<T>(partials_.folded(pair, column, chunks));
    }
  }
};

/// Block (x, y, z): packed rows from x · tokens on, key head y, and in decode chunk z of them.
template <typename T, int head, int warps>
__global__ void __launch_bounds__(Layout<T, head, warps>::threads) attention_kernel(AttentionTask task, int splits, std::int64_t tokens) {
  grid_dependency_launch();
  grid_dependency_wait();
  Tile<T, head, warps> tile(task, splits);
  const std::int64_t begin = blockIdx.x * tokens, end = begin + tokens < task.ring.tokens ? begin + tokens : task.ring.tokens;
  for (std::int64_t t = begin; t < end;) {
    const std::int32_t run = task.ring.run_of[t];
    if (run < 0) {
      ++t;
      continue;
    }
    const Segment s = task.ring.segments[run];
    const std::int64_t stop = s.offset + s.count < end ? s.offset + s.count : end;
    tile.run(s, t, stop - t);
    t = stop;
  }
}

/// How many blocks share a token's chunks: as many as there can be chunks, where few tokens would leave the device idle.
std::int64_t splits_of(const Queue& queue, const RingTask& r, bool decode) {
  return decode && r.tokens * r.kv_heads < std::int64_t{16} * queue.multiprocessors ? ceil_div<std::int64_t>(r.size, chunk_keys) : 1;
}

template <typename T, int head, int warps>
cudaError_t start(const Queue& queue, const AttentionTask& task) {
  using L = Layout<T, head, warps>;
  const RingTask& r = task.ring;
  const std::int64_t group = r.heads / r.kv_heads, splits = splits_of(queue, r, task.decode), fitting = L::rows / group;
  const std::int64_t tokens = task.decode || fitting == 0 ? 1 : fitting;
  const dim3 grid(static_cast<unsigned>(ceil_div(r.tokens, tokens)), static_cast<unsigned>(r.kv_heads), static_cast<unsigned>(splits));
  return launch(queue, grid, L::threads, static_cast<std::size_t>(L::bytes), attention_kernel<T, head, warps>, task, static_cast<int>(splits), tokens);
}

}  // namespace

std::int64_t attention_partial_floats(const Queue& queue, const RingTask& ring, bool decode) {
  const std::int64_t splits = splits_of(queue, ring, decode);
  return splits == 1 ? 0 : ring.tokens * ring.heads * splits * (ring.head_dim + 2);
}

cudaError_t attention(const Queue& queue, const AttentionTask& task) {
  return start_for_head(task.ring.head_dim, [&]<int head>() {
    if (!task.ring.bf16) return start<float, head, 1>(queue, task);
    return task.decode ? start<bfloat16, head, 1>(queue, task) : start<bfloat16, head, head <= 128 ? 4 : 1>(queue, task);
  });
}

}  // namespace kvmesh::cuda
