// What the kernels offer to the CUDA device. They know neither tensors nor shapes' checks: they get pointers into the device's memory and a
// stream; elements are bfloat16 where `bf16` says so, else float32. Each call enqueues one kernel and gives what the launch said.
#pragma once

#include "runtime/structs.h"

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace kvmesh::cuda {

/// Where kernels go.
struct Queue {
  cudaStream_t stream = nullptr;
  int multiprocessors = 1;
  bool early_start = false;  ///< kernels may start while the one before them ends (compute capability 9.0)
  bool weights_written = false;  ///< by kernels, since the host has waited for all: products, which read weights early, then start late
};

/// What a packed weight [k, n] holds: elements of the rows' dtype, or integers and a scale a column.
struct WeightForm {
  bool bf16, int8;
  std::int64_t k, n;
};

/// out [rows, n] (`stride` elements apart) = x [rows, k] · w, with what follows in float32 before the one rounding.
struct LinearTask {
  const void* x;
  const void* w;  // as pack_weight laid it out
  void* out;
  std::int64_t rows, k, n, stride;
  bool bf16;      // of x, and of w's elements unless they are integers
  bool int8;
  bool out_bf16;
  const float* bias;  // [n]; null: none
  Epilogue epilogue;
  float cap;
};

/// Of norm_rope_append and attention: the packed rows, their segments, and the ring [places, kv_heads, size, head_dim] of one layer.
struct RingTask {
  const Segment* segments;
  const std::int32_t* run_of;  // [tokens]: the segment, -1: none
  void* k;
  void* v;
  std::int64_t tokens, heads, kv_heads, size, head_dim;
  bool bf16;
};

/// qkv [tokens, (heads + 2 · kv_heads) · head_dim] → q [tokens, heads · head_dim] and the ring; rope [size, head_dim] or null.
struct AppendTask {
  RingTask ring;
  const void* qkv;
  void* q;
  const float* rope;
  bool norm;
  const float* q_weight;  // [head_dim], of the norms; null: ones
  const float* k_weight;
  float eps;
};

/// rows [rows, width]: x / sqrt(mean(x²) + eps) or, `centred`, (x - mean) / sqrt(variance + eps), then · weight + bias.
struct NormTask {
  const void* x;
  void* out;
  std::int64_t rows, width;
  const float* weight;  // null: ones
  const float* bias;    // null: zeros
  float eps;
  bool centred;
  bool bf16;
};

/// x [tokens, width] += table [·, width][position - start]
struct PositionsTask {
  const Segment* segments;
  const std::int32_t* run_of;  // [tokens]: the segment, -1: none
  const void* table;
  void* x;
  std::int64_t tokens, width;
  bool bf16;
};

struct AttentionTask {
  RingTask ring;
  const void* q;
  void* out;
  std::int64_t window;  // < 0: none
  bool decode;          // every segment has one token
  float* partial;       // attention_partial_floats(…) floats
  unsigned* arrived;    // [tokens · kv_heads], zeros before and after
};

struct CopyTask {
  void* k;
  void* v;
  std::int64_t kv_heads, size, row_bytes;
  std::int64_t source, from, target, to, count;
};

/// As Device::sample; best_ids [rows, best] and log_probs [rows, 1 + best] may be null.
struct SampleTask {
  const float* logits;    // [rows, vocab]
  const SampleRow* rows;  // in the device's memory
  std::int32_t* tokens;
  float* log_probs;
  std::int32_t* best_ids;
  std::int64_t count, vocab, best;
};

cudaError_t gather_rows(const Queue& queue, const void* table, std::int64_t table_rows, std::int64_t row_bytes, const std::int32_t* ids, std::int64_t count,
                        void* out);
/// ids[i] = tokens[ids[i]], for `count` of them.
cudaError_t take_ids(const Queue& queue, const std::int32_t* tokens, std::int32_t* ids, std::int64_t count);
cudaError_t add_positions(const Queue& queue, const PositionsTask& task);
cudaError_t norm(const Queue& queue, const NormTask& task);
/// out [rows, width] = silu(x[:, :width]) · x[:, width:]
cudaError_t swiglu(const Queue& queue, const void* x, void* out, bool bf16, std::int64_t rows, std::int64_t width);
cudaError_t append(const Queue& queue, const AppendTask& task);
cudaError_t copy_rows(const Queue& queue, const CopyTask& task);

std::size_t weight_bytes(const WeightForm& form);
/// On the host: element [i, j] of source [k, n] to its place in `target`.
void pack_weight(const void* source, bool source_bf16, const WeightForm& form, void* target);
cudaError_t linear(const Queue& queue, const LinearTask& task);

constexpr std::int64_t largest_head = 256;  ///< head_dim of attention at most
/// How many floats attention wants between its blocks; 0: none.
std::int64_t attention_partial_floats(const Queue& queue, const RingTask& ring, bool decode);
cudaError_t attention(const Queue& queue, const AttentionTask& task);

/// Where a pass's segments lie, as cuDNN is told it (attention_cudnn.h), for [rows] of them, and for our own attention: [tokens] the segment, or -1 where cuDNN
/// serves it. Offsets in elements. The last two may be null.
struct SdpaRows {
  std::int32_t *query_lengths, *key_lengths;   // [rows]
  std::int32_t *query_offsets, *key_offsets;   // [rows + 1]
  std::int32_t* dkv_offsets;                   // [rows + 1], of keys' gradients
  std::int32_t* left_over;                     // [tokens]
};

struct SdpaRowsTask {
  RingTask ring;
  std::int64_t window;
  std::int64_t segments, rows;
  SdpaRows out;
};
cudaError_t sdpa_rows(const Queue& queue, const SdpaRowsTask& task);

cudaError_t sample(const Queue& queue, const SampleTask& task);

}  // namespace kvmesh::cuda
