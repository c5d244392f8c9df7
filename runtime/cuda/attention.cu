// Attention of a group of query heads over one key head. Keys are taken in blocks of 64 and chunks of 256, counted from the row's first key: within
// a chunk with a running maximum and sum, and the chunks' results are folded in ascending order. That rule is the same for a token that is decoded
// (its chunks then go to several blocks, and the last of them folds) and for one that is prefilled with others: what a query may not see has
// weight 0, which changes no bit. Source: Dao et al., "FlashAttention" (2022), online softmax after Milakov and Gimelshein (2018).
// In bfloat16 tensor cores multiply; a weight enters as two bfloat16, what the first leaves over being the second's: 16 bits of it.
// A value that is not finite reaches only those who see it, although tensor cores multiply what is not seen by zero: see confine.
#include "runtime/cuda/device_code.h"

namespace kvmesh::cuda {
namespace {

constexpr int block_keys = 64, chunk_blocks = 4, chunk_keys = block_keys * chunk_blocks;
constexpr int warp_rows = 16;  // (token, head) pairs of a warp

/// Shared memory, in bytes; `head`: head_dim rounded up, the rest zeros. Strides such that a warp's reads meet no bank twice.
template <typename T, int head, int warps>
struct Layout {
  static constexpr bool bf16 = sizeof(T) == 2;
  static constexpr int k_stride = bf16 ? head * 2 + (head % 64 == 0 ? 64 : 0) : head * 4 + 16;
  static constexpr int v_stride = head * static_cast<int>(sizeof(T)) + 16;
  static constexpr int stages = bf16 && head <= 96 ? 2 : 1;  // 99 KiB in all, but for float32 heads beyond 128: what every GPU has
  static constexpr int stage = block_keys * (k_stride + v_stride);
  static constexpr int q = 0;                                            // [warps · 16] rows of k_stride
  static constexpr int kv = q + warps * warp_rows * k_stride;            // [stages]: keys, then values
  static constexpr int folded = kv + stages * stage;                     // f32 [warps][head / 8 · 4][32 lanes]
  static constexpr int weights = folded + warps * head * warp_rows * 4;  // f32 [warps][16][64], of float32 only
  static constexpr int bytes = weights + (bf16 ? 0 : warps * warp_rows * block_keys * 4);
};

/// Folds one more chunk's result, relative to its maximum `m`, into the earlier ones'.
struct Fold {
  float a, b;  // what the two are multiplied by
  __device__ __forceinline__ Fold(float& largest, float m) {
    const float both = larger(largest, m);
    a = exp_f32(largest - both);  // 0 where there was nothing: exp_f32 of a not-a-number is 0
    b = exp_f32(m - both);
    largest = both;
  }
  __device__ float operator()(float before, float chunk) const { return fmaf(chunk, b, before * a); }
};

template <typename T, int head, int warps>
class Tile {
  using L = Layout<T, head, warps>;

 public:
  __device__ __forceinline__ Tile(const AttentionTask& task, int splits)
      : t_(task),
        splits_(splits),
        shared_(dynamic_shared()),
        group_(task.ring.heads / task.ring.kv_heads),
        warp_(static_cast<int>(threadIdx.x / 32)),
        lane_(static_cast<int>(threadIdx.x % 32)),
        g_(lane_ / 4),
        q_(lane_ % 4) {}

  /// Tokens [token, token + tokens) of segment s.
  __device__ __forceinline__ void run(const Segment& s, std::int64_t token, std::int64_t tokens) {
    const std::int64_t h = t_.ring.head_dim;
    const std::int64_t first = s.begin - s.start + (token - s.offset);  // the first token's own key
    const std::int64_t ring = (s.place * t_.ring.kv_heads + blockIdx.y) * t_.ring.size * h;
    k_ = static_cast<const T*>(t_.ring.k) + ring;
    v_ = static_cast<const T*>(t_.ring.v) + ring;
    for (std::int64_t row0 = 0; row0 < tokens * group_; row0 += warps * warp_rows) {
      const std::int64_t rows = tokens * group_ - row0 < warps * warp_rows ? tokens * group_ - row0 : warps * warp_rows;
      keys_ = first + (row0 + rows - 1) / group_ + 1;
      newest_of_all_ = first + row0 / group_;
      oldest_ = oldest_for(newest_of_all_);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = warp_ * warp_rows + g_ + 8 * half;
        own_[half] = row < rows ? first + (row0 + row) / group_ : -1;
      }
      std::int64_t begin = oldest_ / block_keys, end = ceil_div<std::int64_t>(keys_, block_keys);
      const std::int64_t first_chunk = begin / chunk_blocks, chunks = ceil_div<std::int64_t>(end, chunk_blocks) - first_chunk;
      const bool alone = splits_ == 1 || chunks == 1;
      if (!alone) {
        if (blockIdx.z >= chunks) return;
        const std::int64_t chunk = (first_chunk + blockIdx.z) * chunk_blocks;
        begin = begin > chunk ? begin : chunk;
        end = end < chunk + chunk_blocks ? end : chunk + chunk_blocks;
      } else if (blockIdx.z > 0) {
        return;
      }
      __syncthreads();  // the rows before are done with shared memory
      const T* q = static_cast<const T*>(t_.q);
      fill(L::q, L::k_stride, warps * warp_rows, 0, rows, [&](std::int64_t r) { return q + at(token, row0 + r) * h; });
      attend(s, begin, end, alone);
      if (alone) {
        write_out(token, row0);
      } else {
        write_partial(token, row0);
      }
    }
    if (splits_ > 1) fold_partials(token, first);
  }

 private:
  const AttentionTask& t_;
  const int splits_;
  std::byte* shared_;
  const std::int64_t group_;
  const int warp_, lane_, g_, q_;  // a lane has rows g and g + 8 of its warp's, and of 8 columns 2q and 2q + 1
  const T *k_ = nullptr, *v_ = nullptr;
  std::int64_t keys_ = 0;           // of which the tile's last query sees the last
  std::int64_t oldest_ = 0;         // the first key that its first query sees
  std::int64_t newest_of_all_ = 0;  // the last one that it sees, and with it all
  std::int64_t own_[2];      // key of the query in row g, g + 8; -1: no query
  float largest_[2], sum_[2], out_[head / 8][4];            // of the chunk
  float folded_largest_[2], folded_sum_[2];                 // of the chunks before; their output is in shared memory

  /// The (token, head) pair's row in q and out.
  __device__ std::int64_t at(std::int64_t token, std::int64_t row) const { return (token + row / group_) * t_.ring.heads + blockIdx.y * group_ + row % group_; }

  __device__ std::int64_t oldest_for(std::int64_t own) const { return t_.window < 0 || own < t_.window ? 0 : own - t_.window; }

  /// `rows` rows to shared memory; zeros in those outside [first, valid), and beyond head_dim.
  template <typename Address>
  __device__ __forceinline__ void fill(int offset, int stride, int rows, std::int64_t first, std::int64_t valid, const Address& address) {
    constexpr int pieces = head * static_cast<int>(sizeof(T)) / 16, of_piece = 16 / static_cast<int>(sizeof(T));
    const int h = static_cast<int>(t_.ring.head_dim);
    const bool whole = h % of_piece == 0;
    for (int i = static_cast<int>(threadIdx.x); i < rows * pieces; i += warps * 32) {
      const int row = i / pieces, column = i % pieces * of_piece;
      T* to = reinterpret_cast<T*>(shared_ + offset + row * stride) + column;
      const bool there = row >= first && row < valid && column < h;
      const T* from = there ? address(row) + column : k_;
      if (whole) {
        copy_16_async(to, from, there);
      } else {
#pragma unroll
        for (int e = 0; e < of_piece; ++e) to[e] = there && column + e < h ? from[e] : T(0.0f);
      }
    }
  }

  __device__ int stage_at(std::int64_t block) const { return L::kv + static_cast<int>(block % L::stages) * L::stage; }

  __device__ __forceinline__ void fill_block(const Segment& s, std::int64_t block) {
    const std::int64_t key = block * block_keys, size = t_.ring.size, first = (s.start + key) % size, valid = keys_ - key, h = t_.ring.head_dim;
    const auto slot = [=](std::int64_t j) { return (first + j < size ? first + j : first + j - size) * h; };
    fill(stage_at(block), L::k_stride, block_keys, oldest_ - key, valid, [&](std::int64_t j) { return k_ + slot(j); });
    fill(stage_at(block) + block_keys * L::k_stride, L::v_stride, block_keys, oldest_ - key, valid, [&](std::int64_t j) { return v_ + slot(j); });
  }

  /// Blocks [begin, end) of keys; the last chunk is folded too where the tile is `alone`.
  __device__ __forceinline__ void attend(const Segment& s, std::int64_t begin, std::int64_t end, bool alone) {
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
      std::byte* keys = shared_ + stage_at(block);
      float score[block_keys / 8][4] = {};
      scores(keys, score);
      weigh(block, score);
      std::byte* values = keys + block_keys * L::k_stride;
      if (!all_see(block) && __syncthreads_or(not_finite(values))) confine(block, values);
      add_values(values, score);
      __syncthreads();
      if (alone && ((block + 1) % chunk_blocks == 0 || block + 1 == end)) fold_chunk();
    }
  }

  __device__ __forceinline__ void new_chunk() {
#pragma unroll
    for (int half = 0; half < 2; ++half) largest_[half] = -infinity, sum_[half] = 0;
#pragma unroll
    for (auto& column : out_) {
#pragma unroll
      for (float& x : column) x = 0;
    }
  }

  __device__ __forceinline__ float& folded(int i) const { return reinterpret_cast<float*>(shared_ + L::folded)[(warp_ * (head / 8 * 4) + i) * 32 + lane_]; }

  __device__ __forceinline__ void scores(const std::byte* keys, float (&score)[block_keys / 8][4]) const {
    const std::byte* query = shared_ + L::q + (warp_ * warp_rows + g_) * L::k_stride;
    if constexpr (L::bf16) {
#pragma unroll
      for (int d = 0; d < head; d += 32) {  // as linear.cu reads its tiles: 8 successive elements a lane
        const uint4 low = *reinterpret_cast<const uint4*>(query + d * 2 + q_ * 16), high = *reinterpret_cast<const uint4*>(query + 8 * L::k_stride + d * 2 + q_ * 16);
#pragma unroll
        for (int n = 0; n < block_keys / 8; ++n) {
          const uint4 key = *reinterpret_cast<const uint4*>(keys + (n * 8 + g_) * L::k_stride + d * 2 + q_ * 16);
          mma_bf16(score[n], low.x, high.x, low.y, high.y, key.x, key.y);
          mma_bf16(score[n], low.z, high.z, low.w, high.w, key.z, key.w);
        }
      }
    } else {
      const float* low = reinterpret_cast<const float*>(query);
      const float* high = reinterpret_cast<const float*>(query + 8 * L::k_stride);
#pragma unroll
      for (int n = 0; n < block_keys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float* key = reinterpret_cast<const float*>(keys + (n * 8 + 2 * q_ + c) * L::k_stride);
#pragma unroll
          for (int d = 0; d < t_.ring.head_dim; ++d) {
            score[n][c] = fmaf(low[d], key[d], score[n][c]);
            score[n][2 + c] = fmaf(high[d], key[d], score[n][2 + c]);
          }
        }
      }
    }
  }

  /// Scores become weights relative to the chunk's largest score so far; what was summed before is brought to the same measure.
  __device__ __forceinline__ void weigh(std::int64_t block, float (&score)[block_keys / 8][4]) {
    const float scale = 1.0f / sqrtf(static_cast<float>(t_.ring.head_dim));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t newest = own_[half] - block * block_keys, oldest = t_.window < 0 ? 0 : newest - t_.window;
      float largest = -infinity;
#pragma unroll
      for (int n = 0; n < block_keys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int key = n * 8 + 2 * q_ + c;
          float& x = score[n][2 * half + c];
          x = key <= newest && key >= oldest ? x * scale : -infinity;
          largest = larger(largest, x);
        }
      }
#pragma unroll
      for (int lanes = 1; lanes <= 2; lanes *= 2) largest = larger(largest, __shfl_xor_sync(all_lanes, largest, lanes));
      const float now = larger(largest_[half], largest), decay = exp_f32(largest_[half] - now);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < block_keys / 8; ++n) {
#pragma unroll
        for (int c = 0; c < 2; ++c) sum = sum + (score[n][2 * half + c] = exp_f32(score[n][2 * half + c] - now));
      }
      largest_[half] = now;
      sum_[half] = fmaf(sum_[half], decay, sum);
#pragma unroll
      for (int i = 0; i < head / 8; ++i) out_[i][2 * half] *= decay, out_[i][2 * half + 1] *= decay;
    }
  }

  __device__ static std::uint32_t pair(float low, float high) { return bfloat16(low).bits | static_cast<std::uint32_t>(bfloat16(high).bits) << 16; }
  __device__ static float left_over(float x) { return x - to_float(bfloat16(x)); }

  __device__ __forceinline__ void add_values(const std::byte* values, const float (&weight)[block_keys / 8][4]) {
    if constexpr (L::bf16) {
#pragma unroll
      for (int k = 0; k < block_keys / 16; ++k) {
        std::uint32_t a[4], rest[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float low = weight[2 * k + i / 2][2 * (i % 2)], high = weight[2 * k + i / 2][2 * (i % 2) + 1];
          a[i] = pair(low, high);
          rest[i] = pair(left_over(low), left_over(high));
        }
        const std::byte* row = values + (k * 16 + lane_ % 16) * L::v_stride + lane_ / 16 * 16;
#pragma unroll
        for (int d = 0; d < head / 8; d += 2) {
          std::uint32_t v[4];  // keys 0 … 7 and 8 … 15 of columns 8d …, then of the next eight
          load_matrices_transposed(v, row + d * 16);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            mma_bf16(out_[d + i], a[0], a[1], a[2], a[3], v[2 * i], v[2 * i + 1]);
            mma_bf16(out_[d + i], rest[0], rest[1], rest[2], rest[3], v[2 * i], v[2 * i + 1]);
          }
        }
      }
    } else {
      float* p = reinterpret_cast<float*>(shared_ + L::weights) + warp_ * warp_rows * block_keys;
#pragma unroll
      for (int n = 0; n < block_keys / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) p[(g_ + i / 2 * 8) * block_keys + n * 8 + 2 * q_ + i % 2] = weight[n][i];
      }
      __syncwarp();
      for (int key = 0; key < block_keys; ++key) {
        const float* v = reinterpret_cast<const float*>(values + key * L::v_stride);
#pragma unroll
        for (int i = 0; i < head / 8; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) out_[i][c] = fmaf(p[(g_ + c / 2 * 8) * block_keys + key], v[i * 8 + 2 * q_ + c % 2], out_[i][c]);
        }
      }
      __syncwarp();
    }
  }

  /// Whether every query of the tile sees every key of the block that is not zeros.
  __device__ __forceinline__ bool all_see(std::int64_t block) const {
    const std::int64_t key = block * block_keys, first = key > oldest_ ? key : oldest_, end = key + block_keys < keys_ ? key + block_keys : keys_;
    return end - 1 <= newest_of_all_ && first >= oldest_for(keys_ - 1);
  }

  /// Of the part of a block's values that is this thread's to look at.
  __device__ __forceinline__ bool not_finite(const std::byte* values) const {
    constexpr std::uint32_t all_ones = L::bf16 ? 0x7f80 : 0x7f800000;
    constexpr int pieces = head * static_cast<int>(sizeof(T)) / 16;
    bool found = false;
    for (int i = static_cast<int>(threadIdx.x); i < block_keys * pieces; i += warps * 32) {
      const uint4 piece = *reinterpret_cast<const uint4*>(values + i / pieces * L::v_stride + i % pieces * 16);
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const std::uint32_t x = part == 0 ? piece.x : part == 1 ? piece.y : part == 2 ? piece.z : piece.w;
        found = found || (x & all_ones) == all_ones || (L::bf16 && (x >> 16 & all_ones) == all_ones);
      }
    }
    return found;
  }

  /// Which keys of a block, counted from its first, a query sees: those in [first, second].
  __device__ int2 seen_of(std::int64_t own, std::int64_t block) const {
    const std::int64_t oldest = oldest_for(own) - block * block_keys, newest = own - block * block_keys;
    return {static_cast<int>(oldest < 0 ? 0 : oldest < block_keys ? oldest : block_keys), static_cast<int>(newest < 0 ? -1 : newest < block_keys ? newest : block_keys)};
  }

  __device__ static bool finite(T x) { return !(to_float(x) - to_float(x) != 0); }

  /// Values that are not finite make not-a-numbers, in their column, of the queries that see them, and are zeros then for all: multiplied by the weight of
  /// those who do not see them, 0, they would be not-a-numbers as well.
  __device__ void confine(std::int64_t block, std::byte* values) {
    const int2 low = seen_of(own_[0], block), high = seen_of(own_[1], block);
#pragma unroll 1
    for (int key = 0; key < block_keys; ++key) {
      const T* v = reinterpret_cast<const T*>(values + key * L::v_stride) + 2 * q_;
      const bool low_sees = key >= low.x && key <= low.y, high_sees = key >= high.x && key <= high.y;
#pragma unroll
      for (int i = 0; i < head / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          if (finite(v[i * 8 + c])) continue;
          if (low_sees) out_[i][c] = not_a_number;
          if (high_sees) out_[i][2 + c] = not_a_number;
        }
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < block_keys * head; i += warps * 32) {
      T& x = reinterpret_cast<T*>(values + i / head * L::v_stride)[i % head];
      if (!finite(x)) x = T(0.0f);
    }
    __syncthreads();
  }

  /// A row's sum lies with the four lanes that share it.
  __device__ __forceinline__ void gather_sums() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int lanes = 1; lanes <= 2; lanes *= 2) sum_[half] = sum_[half] + __shfl_xor_sync(all_lanes, sum_[half], lanes);
    }
  }

  __device__ __forceinline__ void fold_chunk() {
    gather_sums();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Fold fold(folded_largest_[half], largest_[half]);
      folded_sum_[half] = fold(folded_sum_[half], sum_[half]);
#pragma unroll
      for (int i = 0; i < head / 8; ++i) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) folded(4 * i + c) = fold(folded(4 * i + c), out_[i][c]);
      }
    }
    new_chunk();
  }

  __device__ __forceinline__ void write_out(std::int64_t token, std::int64_t row0) {
#pragma unroll
    for (int i = 0; i < head / 8 * 4; ++i) {
      const int half = i % 4 / 2, column = i / 4 * 8 + 2 * q_ + i % 2;
      if (own_[half] < 0 || column >= t_.ring.head_dim) continue;
      const std::int64_t row = row0 + warp_ * warp_rows + g_ + 8 * half;
      static_cast<T*>(t_.out)[at(token, row) * t_.ring.head_dim + column] = from_float<T>(folded(i) / folded_sum_[half]);
    }
  }

  /// Of chunk z of a (token, head) pair: output [head_dim], maximum, sum.
  __device__ float* partial(std::int64_t pair, std::int64_t z) const { return t_.partial + (pair * splits_ + z) * (t_.ring.head_dim + 2); }

  __device__ __forceinline__ void write_partial(std::int64_t token, std::int64_t row0) {
    gather_sums();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (own_[half] < 0) continue;
      float* to = partial(at(token, row0 + warp_ * warp_rows + g_ + 8 * half), blockIdx.z);
#pragma unroll
      for (int i = 0; i < head / 8; ++i) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int column = i * 8 + 2 * q_ + c;
          if (column < t_.ring.head_dim) to[column] = out_[i][2 * half + c];
        }
      }
      if (q_ == 0) to[t_.ring.head_dim] = largest_[half], to[t_.ring.head_dim + 1] = sum_[half];
    }
  }

  /// Of the blocks that have the token's chunks, the last to come here folds them. Only decoded tokens are split: one a segment.
  __device__ __forceinline__ void fold_partials(std::int64_t token, std::int64_t own) {
    const std::int64_t oldest_seen = t_.window < 0 ? 0 : own - t_.window, first_chunk = (oldest_seen > 0 ? oldest_seen : 0) / chunk_keys;
    const std::int64_t chunks = own / chunk_keys + 1 - first_chunk, h = t_.ring.head_dim;
    if (chunks == 1) return;
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* arrived = t_.arrived + token * t_.ring.kv_heads + blockIdx.y;
      last = atomicAdd(arrived, 1u) == static_cast<unsigned>(chunks - 1);
      if (last) *arrived = 0;
    }
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (std::int64_t i = threadIdx.x; i < group_ * h; i += warps * 32) {
      const std::int64_t pair = at(token, i / h), column = i % h;
      float largest = -infinity, sum = 0, out = 0;
      for (std::int64_t z = 0; z < chunks; ++z) {
        const float* chunk = partial(pair, z);
        const Fold fold(largest, __ldcg(chunk + h));
        sum = fold(sum, __ldcg(chunk + h + 1));
        out = fold(out, __ldcg(chunk + column));
      }
      static_cast<T*>(t_.out)[pair * h + column] = from_float<T>(out / sum);
    }
  }
};

/// Block (x, y, z): packed rows from x · tokens on, key head y, and in decode chunk z of them.
template <typename T, int head, int warps>
__global__ void __launch_bounds__(warps * 32) attention_kernel(AttentionTask task, int splits, std::int64_t tokens) {
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
  const RingTask& r = task.ring;
  const std::int64_t group = r.heads / r.kv_heads, splits = splits_of(queue, r, task.decode), fitting = warps * warp_rows / group;
  const std::int64_t tokens = task.decode || fitting == 0 ? 1 : fitting;
  const dim3 grid(static_cast<unsigned>(ceil_div(r.tokens, tokens)), static_cast<unsigned>(r.kv_heads), static_cast<unsigned>(splits));
  return launch(queue, grid, warps * 32, static_cast<std::size_t>(Layout<T, head, warps>::bytes), attention_kernel<T, head, warps>, task, static_cast<int>(splits), tokens);
}

template <int head>
cudaError_t start(const Queue& queue, const AttentionTask& task) {
  if (!task.ring.bf16) return start<float, head, 1>(queue, task);
  return task.decode ? start<bfloat16, head, 1>(queue, task) : start<bfloat16, head, head <= 128 ? 4 : 1>(queue, task);
}

}  // namespace

std::int64_t attention_partial_floats(const Queue& queue, const RingTask& ring, bool decode) {
  const std::int64_t splits = splits_of(queue, ring, decode);
  return splits == 1 ? 0 : ring.tokens * ring.heads * splits * (ring.head_dim + 2);
}

cudaError_t attention(const Queue& queue, const AttentionTask& task) {
  const std::int64_t h = task.ring.head_dim;
  if (h <= 32) return start<32>(queue, task);
  if (h <= 64) return start<64>(queue, task);
  if (h <= 96) return start<96>(queue, task);
  if (h <= 128) return start<128>(queue, task);
  return h <= largest_head ? start<largest_head>(queue, task) : cudaErrorInvalidValue;
}

}  // namespace kvmesh::cuda
