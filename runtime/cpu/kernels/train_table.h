// What the kernels of one instruction set offer for training, as table.h has it for the forward pass.
#pragma once

#include "runtime/train_structs.h"

#include <cstddef>
#include <cstdint>

namespace kvmesh::cpu {

/// One token's heads, backwards through RoPE and norm: gradients of q [heads · head_dim], k and v [kv_heads · head_dim] to that of qkv.
struct AppendBackwardTask {
  const void* qkv;
  const void *dq, *dk, *dv;
  void* dqkv;
  const float* rope;  // [head_dim]: cosines, then sines; null: none
  std::int64_t heads, kv_heads, head_dim;
  float eps;
  bool bf16;
};

/// A run of `tokens` tokens that see one another and nothing else, and the query heads that share one key head.
struct AttentionBackwardTask {
  const void *q, *out, *dout;  // first token's first query head of the group; [tokens] at `stride` elements, [group, head_dim] contiguous
  void* dq;                    // likewise
  const void *k, *v;           // [tokens, head_dim]
  void *dk, *dv;               // [tokens] at `kv_stride` elements, [head_dim]
  std::int64_t stride, kv_stride, head_dim, group, tokens;
  std::int64_t window;  // < 0: none
  bool bf16;
};

struct TrainKernels {
  /// out [columns of x, rows] = rows [begin, end) of x [·, columns], transposed; out's rows are `stride` elements apart, and it begins with row 0.
  void (*transpose)(const void* x, bool bf16, std::int64_t columns, std::int64_t begin, std::int64_t end, void* out, bool out_bf16, std::int64_t stride);
  /// One row: dx += the gradient that reaches x through its norm; `rounded` (bfloat16, may be null) gets the sum as well.
  void (*rms_norm_backward)(const void* x, const void* dy, bool bf16, std::int64_t width, float eps, float* dx, void* rounded, void* scratch);
  void (*append_backward)(const AppendBackwardTask& task, void* scratch);
  /// dhidden *= 2 · sqrt(hidden), hidden being max(x, 0)².
  void (*relu_squared_backward)(const void* hidden, void* dhidden, bool bf16, std::int64_t count);
  std::size_t (*attention_backward_scratch)(std::int64_t head_dim, std::int64_t tokens, bool bf16);
  void (*attention_backward)(const AttentionBackwardTask& task, void* scratch);
  /// One row of a part of the logits [width]: sums[0], the largest before, becomes the largest, and sums[1] the sum of exp(logit - the largest).
  void (*softmax_sums)(const float* logits, std::int64_t width, float* sums);
  /// The gradient of -scale · log p(target) with respect to such a part before the cap (0: none), given the sums over all of them; `target` counts from the
  /// part's beginning and may lie outside. dlogits may be logits.
  void (*cross_entropy_backward)(const float* logits, std::int64_t width, std::int64_t target, const float* sums, float cap, float scale, void* dlogits, bool bf16);
  void (*round)(const float* x, void* bf16, std::int64_t count);
  void (*add)(float* inout, const float* x, std::int64_t count);
  double (*sum_squares)(const float* x, std::int64_t count);
  void (*adamw)(const AdamwStep& step, float* p, const float* g, float* m, float* v, std::int64_t count);
  /// m = beta · m + (1 - beta) · scale · g; update = Nesterov's look ahead from it.
  void (*momentum)(const MuonStep& step, const float* g, float* m, float* update, std::int64_t count);
  /// p -= rate · update, with cautious decay.
  void (*apply)(const Decay& decay, float rate, float* p, const float* update, std::int64_t count);
  /// out = a · x + b · out.
  void (*scale_add)(float a, const float* x, float b, float* out, std::int64_t count);
};

namespace scalar { extern const TrainKernels train_kernels; }
namespace avx2 { extern const TrainKernels train_kernels; }
namespace avx512 { extern const TrainKernels train_kernels; }
namespace avx512_bf16 { extern const TrainKernels train_kernels; }
namespace amx { extern const TrainKernels train_kernels; }

}  // namespace kvmesh::cpu
