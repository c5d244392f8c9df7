// What the kernels of one instruction set offer to the CPU device. Kernels know neither tensors nor threads: they get
// pointers, the part of the work to do, and scratch memory. Elements are bfloat16 where `bf16` says so, else float32.
#pragma once

#include "runtime/structs.h"

#include <cstddef>
#include <cstdint>

namespace kvmesh::cpu {

/// What a packed weight holds: elements of the rows' dtype, or integers and a scale a column.
struct WeightForm {
  bool bf16;  // the rows
  bool int8 = false;
};

/// out [rows, n] = x [rows, k] · w, with what follows in float32 before the one rounding.
struct LinearTask {
  const void* x;
  const void* w;  // packed [k, n], 64-byte aligned
  void* out;
  std::int64_t k, n;
  std::int64_t stride;  // elements from one row of out to the next
  bool bf16;            // of x, and of w's elements unless they are integers
  bool out_bf16;
  bool int8 = false;    // of w
  const float* bias = nullptr;  // [n]; null: none
  Epilogue epilogue = Epilogue::none;
  float cap = 0;                // soft_cap's

  WeightForm form() const { return {bf16, int8}; }
};

/// The queries of `tokens` consecutive tokens that share one key head, against the row's keys.
struct AttentionTask {
  const void* q;  // first token's first query head of the group; [tokens] at `stride` elements, [group, head_dim] contiguous
  void* out;      // likewise
  const void* k;  // this place's and head's ring [size, head_dim]
  const void* v;
  std::int64_t stride, size, head_dim, group, tokens;
  std::int64_t start;     // position of the row's first key
  std::int64_t position;  // of the first token
  std::int64_t window;    // < 0: none
  bool bf16;
};

/// One token's heads: qkv [(heads + 2 · kv_heads) · head_dim] → q [heads · head_dim] and one slot of each head's ring.
struct AppendTask {
  const void* qkv;
  void* q;
  void* k;  // the slot in key head 0; the next head's is `head_stride` elements on
  void* v;
  const float* rope;  // [head_dim]: cosines, then sines; null: none
  std::int64_t heads, kv_heads, head_dim, head_stride;
  bool norm;
  const float* q_weight;  // [head_dim], of the norms; null: ones
  const float* k_weight;
  float eps;
  bool bf16;
};

/// One row [width]: x / sqrt(mean(x²) + eps) or, `centred`, (x - mean) / sqrt(variance + eps), then · weight + bias.
struct NormTask {
  std::int64_t width;
  const float* weight;  // null: ones
  const float* bias;    // null: zeros
  float eps;
  bool centred;
  bool bf16;
};

struct Kernels {
  std::int64_t panel;      // columns of a weight's panel
  std::int64_t (*panel_bytes)(WeightForm form, std::int64_t k);
  /// Panels [begin, end) of source [k, n] into target, the start of the whole packed weight.
  void (*pack)(const void* source, bool source_bf16, WeightForm form, std::int64_t k, std::int64_t n, std::int64_t begin, std::int64_t end, void* target);
  /// Rows of one call of `linear` that the caches hold while panels pass by.
  std::int64_t (*block_rows)(bool bf16, std::int64_t k);
  std::size_t (*linear_scratch)(WeightForm form, std::int64_t k, std::int64_t rows);
  /// Rows [row_begin, row_end) of panels [panel_begin, panel_end).
  void (*linear)(const LinearTask& task, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin, std::int64_t panel_end, void* scratch);
  std::size_t (*attention_scratch)(std::int64_t head_dim, std::int64_t rows);
  void (*attention)(const AttentionTask& task, void* scratch);
  /// Scratch memory of a row for norm and append; add_row and swiglu need it twice.
  std::size_t (*row_scratch)(std::int64_t width);
  void (*norm)(const NormTask& task, const void* x, void* out, void* scratch);
  /// x [width] += y
  void (*add_row)(void* x, const void* y, bool bf16, std::int64_t width, void* scratch);
  /// out [width] = silu(gate) · up, of x = [gate, up]
  void (*swiglu)(const void* x, void* out, bool bf16, std::int64_t width, void* scratch);
  void (*append)(const AppendTask& task, void* scratch);
  /// Multiplies and adds in registers, as fast as this instruction set does it; returns how many floating-point operations that was.
  double (*multiply_registers)(bool bf16, std::int64_t iterations);
  /// Reads [memory, memory + bytes), 64-byte aligned, once.
  void (*read_memory)(const void* memory, std::int64_t bytes);
};

namespace scalar { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
namespace avx512_bf16 { extern const Kernels kernels; }
namespace amx { extern const Kernels kernels; }

}  // namespace kvmesh::cpu
