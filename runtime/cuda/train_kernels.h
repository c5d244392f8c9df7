// What the kernels of training offer, as kernels.h has it for the forward pass; runtime/train_ops.h says what each does.
#pragma once

#include "runtime/cuda/kernels.h"
#include "runtime/train_structs.h"

namespace kvmesh::cuda {

/// dqkv [tokens, (heads + 2 · kv_heads) · head_dim] of dq, dk and dv, and of the qkv that append was given; rope [≥ size, head_dim] or null. The ring is not touched.
struct AppendBackwardTask {
  RingTask ring;
  const void* qkv;
  const void *dq, *dk, *dv;
  void* dqkv;
  const float* rope;
  float eps;
};

/// Every segment begins its row and lies in the ring at once. dq like q, out and dout [tokens, heads · head_dim]; dk, dv [tokens, kv_heads · head_dim].
struct AttentionBackwardTask {
  RingTask ring;
  const void *q, *out, *dout;
  void *dq, *dk, *dv;
  float* facts;  // [tokens, heads, 3], for the kernels' own use
  std::int64_t segments, longest;  // how many there are, and the most tokens of one
  std::int64_t window;             // < 0: none
};

/// dx f32 [rows, width] += …; rounded, bfloat16, may be null.
struct NormBackwardTask {
  const void *x, *dy;
  float* dx;
  void* rounded;
  std::int64_t rows, width;
  float eps;
  bool bf16;
};

/// A part of the vocabulary, logits [rows, width]: entries `first` …; sums [rows, 3].
struct LossTask {
  const float* logits;
  const std::int32_t* targets;
  float* sums;
  std::int64_t rows, width, first;
};

/// target has weight_bytes(form); form.int8 is false. One kernel.
cudaError_t pack(const Queue& queue, const void* source, bool source_bf16, const WeightForm& form, void* target);
/// out [columns, rows] = x [rows, columns], transposed.
cudaError_t transpose(const Queue& queue, const void* x, bool bf16, std::int64_t rows, std::int64_t columns, void* out, bool out_bf16);
/// out [n, n]: rows [0, from + width) of its columns [from, from + width) are columns [from + width, width], and above the diagonal's block they are mirrored.
cudaError_t mirror(const Queue& queue, const float* columns, std::int64_t from, std::int64_t width, float* out, std::int64_t n);
cudaError_t round_to_bf16(const Queue& queue, const float* x, void* out, std::int64_t count);

cudaError_t norm_backward(const Queue& queue, const NormBackwardTask& task);
cudaError_t append_backward(const Queue& queue, const AppendBackwardTask& task);
/// Three kernels.
cudaError_t attention_backward(const Queue& queue, const AttentionBackwardTask& task);
cudaError_t relu_squared_backward(const Queue& queue, const void* hidden, void* dhidden, bool bf16, std::int64_t count);

cudaError_t softmax_sums(const Queue& queue, const LossTask& task);
cudaError_t cross_entropy_backward(const Queue& queue, const LossTask& task, float cap, float scale, void* dlogits, bool bf16);
/// table [·, width] += dx [tokens, width] by ids.
cudaError_t scatter_rows(const Queue& queue, const std::int32_t* ids, const float* dx, std::int64_t tokens, std::int64_t width, float* table);

/// sums [ceil(count / block)]
cudaError_t square_sums(const Queue& queue, const float* x, std::int64_t count, std::int64_t block, double* sums);
cudaError_t adamw(const Queue& queue, const AdamwStep& step, float* p, const float* g, float* m, float* v, std::int64_t count);
cudaError_t momentum(const Queue& queue, const MuonStep& step, const float* g, float* m, float* update, std::int64_t count);
cudaError_t apply(const Queue& queue, const Decay& decay, float rate, float* p, const float* update, std::int64_t count);
cudaError_t scale_add(const Queue& queue, float a, const float* x, float b, float* out, std::int64_t count);

}  // namespace kvmesh::cuda
