// Attention by cuDNN, in bfloat16, from the ring as it lies: no copy of a key or value, no mask over what is not there. A row's keys that lie behind each
// other in the ring are a run of memory, told by where it begins and how long it is, both in the device's memory, so that a recorded step serves
// every later one. In training also the gradients, by algorithms whose bits are the same each time. What cuDNN does not serve (rows that wrap, other dtypes,
// shapes without an engine) is left to our own kernels: attention.cu, attention_backward.cu.
#pragma once

#include "runtime/cuda/kernels.h"

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>

namespace kvmesh::cuda {

/// What cuDNN is asked for: the result; the same with each query's log(sum of exp(score)), which gradients need; or these.
enum class SdpaPass : std::uint8_t { forward, statistics, backward };

/// What a plan of cuDNN's is made for. Rows and queries are rounded up, so that a few plans serve all passes.
struct SdpaShape {
  std::int64_t rows;     ///< segments of a pass at most; those that are not there have no queries
  std::int64_t queries;  ///< of a row at most; 1: nothing is masked
  std::int64_t heads, kv_heads, size, head_dim;
  std::int64_t window;   ///< as Device::attention's; < 0 where queries is 1: the rows' keys are then those of the window
  SdpaPass pass = SdpaPass::forward;  ///< in the others a row has as many keys as queries
  bool ragged = true;    ///< rows lie where SdpaRows says; else row i has `queries` tokens behind those of row i - 1, and its keys are the first of place i
  auto operator<=>(const SdpaShape&) const = default;
};

/// How it lies in memory: [batch, head, position, element] strides, in elements. q is packed rows [tokens, heads, head_dim], and so are the result and their gradients; a
/// row begins where its offset says. Keys and values are the ring [places, kv_heads, size, head_dim], and a row's begin where theirs says; their gradients are
/// packed rows [tokens, kv_heads, head_dim].
struct SdpaLayout {
  SdpaShape shape;
  std::int64_t q_strides[4], kv_strides[4], dkv_strides[4];
};

inline SdpaLayout layout_of(const SdpaShape& s) {
  const std::int64_t row = s.heads * s.head_dim, kv_row = s.kv_heads * s.head_dim, ring = s.size * s.head_dim;
  return {s, {s.queries * row, s.head_dim, row, 1}, {s.kv_heads * ring, ring, s.head_dim, 1}, {s.queries * kv_row, s.head_dim, kv_row, 1}};
}

/// Of one call, all in the device's memory.
struct SdpaMemory {
  const void *q, *k, *v;
  void* out;
  SdpaRows rows;                 // nulls: not ragged
  float* statistics = nullptr;   // [rows, heads, queries], as the next of the passes that have them
  const void* dout = nullptr;
  void *dq = nullptr, *dk = nullptr, *dv = nullptr;
};

/// cuDNN's versions, compiled in and loaded, for people; "not compiled in".
std::string cudnn_versions();

class CudnnAttention {
 public:
  /// Loads cuDNN; an Error where it is not compiled in or not there. `compute_capability`: 90 for 9.0.
  CudnnAttention(cudaStream_t stream, int compute_capability);
  ~CudnnAttention();
  CudnnAttention(const CudnnAttention&) = delete;
  CudnnAttention& operator=(const CudnnAttention&) = delete;

  /// Of q, or of one layer's keys: offsets are 32-bit numbers.
  static std::int64_t most_elements();
  /// Bytes that a backward pass may take besides: with the same bits each time it keeps the scores' gradients on most GPUs.
  static std::size_t most_workspace();

  /// Whose bits results are: "cudnn-9.19.0".
  const std::string& name() const { return name_; }

  /// Why cuDNN cannot do this; empty: it can. The first call for a shape makes its plan, which takes a while and must not be recorded.
  const std::string& refusal(const SdpaShape& shape);
  /// Of a shape without a refusal, as the next.
  std::size_t workspace_bytes(const SdpaShape& shape) const;
  void enqueue(const SdpaShape& shape, const SdpaMemory& memory, void* workspace) const;

 private:
  struct Library;
  struct Plan;
  std::unique_ptr<Library> library_;
  std::string name_;
  std::map<SdpaShape, std::shared_ptr<Plan>> plans_;
};

}  // namespace kvmesh::cuda
