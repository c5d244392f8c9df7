// Attention by our own kernels, or by cuDNN with our own for what it leaves over.
#include "runtime/cuda/cuda_device.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <mutex>
#include <set>

namespace kvmesh::cuda {
namespace {

constexpr std::int64_t fewest_queries = 64;  // of a plan for prompts: shorter runs share it

/// Once a process, whichever device says it.
void tell_once(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string> told;
  const std::lock_guard lock(mutex);
  if (told.insert(text).second) fmt::print(stderr, "kvmesh: note: --attention cudnn: {}\n", text);
}

std::int64_t rounded_up(std::int64_t n) { return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n))); }

bool wraps(const Segment& s, std::int64_t size) { return s.start % size + (s.begin - s.start) + s.count > size; }

}  // namespace

bool CudaDevice::leaves_rows(std::span<const Segment> segments, std::int64_t size) const {
  return cudnn_ && std::any_of(segments.begin(), segments.end(), [=](const Segment& s) { return wraps(s, size); });
}

void CudaDevice::do_attention(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out) {
  const bool decode = std::all_of(pass.segments.begin(), pass.segments.end(), [](const Segment& s) { return s.count == 1; });
  const AttentionTask task{ring_of(q, pass, cache), q.raw(), out.raw(), window, decode, nullptr, nullptr};
  kvmesh::check(task.ring.head_dim <= largest_head, "attention: a head_dim of {}; with CUDA {} is the largest", task.ring.head_dim, largest_head);
  if (!cudnn_ || !attend_by_cudnn(task, pass.segments, cache.k.size(0))) attend(task);
}

void CudaDevice::attend(const AttentionTask& wanted) {
  AttentionTask task = wanted;
  const RingTask& ring = task.ring;
  const std::int64_t partial = attention_partial_floats(queue_, ring, task.decode);
  if (partial > 0) {
    grow(partial_, static_cast<std::size_t>(partial) * sizeof(float));
    const std::size_t counters = static_cast<std::size_t>(ring.tokens * ring.kv_heads) * sizeof(unsigned);
    if (!arrived_.defined() || arrived_.bytes() < counters) {
      grow(arrived_, counters);
      must(cudaMemsetAsync(arrived_.raw(), 0, arrived_.bytes(), stream_->handle));
    }
  }
  task.partial = static_cast<float*>(partial_.raw());
  task.arrived = static_cast<unsigned*>(arrived_.raw());
  must(cuda::attention(queue_, task));
}

bool CudaDevice::attend_by_cudnn(AttentionTask task, std::span<const Segment> segments, std::int64_t places) {
  const RingTask& r = task.ring;
  std::int64_t longest = 1;
  for (const Segment& s : segments) longest = std::max<std::int64_t>(longest, s.count);
  if (!r.bf16) return tell_once("float32 is attended by kvmesh's own kernels"), false;
  // Of all places, for a step that is recorded now is repeated for others.
  const std::int64_t elements = std::max(places * r.kv_heads * r.size, r.tokens * r.heads) * r.head_dim;
  if (elements > CudnnAttention::most_elements()) return tell_once("caches of 2^31 elements a layer are attended by kvmesh's own kernels"), false;
  const SdpaShape shape{rounded_up(std::ssize(segments)), longest == 1 ? 1 : std::max(fewest_queries, rounded_up(longest)), r.heads, r.kv_heads, r.size, r.head_dim,
                        longest == 1 ? -1 : task.window};
  if (const std::string& why = cudnn_->refusal(shape); !why.empty()) {
    tell_once(fmt::format("cuDNN does not do {} query heads over {} key heads of {} elements ({}); kvmesh's own kernels do", r.heads, r.kv_heads, r.head_dim, why));
    return false;
  }
  const std::size_t workspace = cudnn_->workspace_bytes(shape);
  if (workspace > 0) grow(sdpa_workspace_, workspace);
  const bool leaves = leaves_rows(segments, r.size);
  const SdpaRows rows = sdpa_rows_of(r, task.window, std::ssize(segments), shape.rows);
  cudnn_->enqueue(shape, {task.q, r.k, r.v, task.out, rows}, sdpa_workspace_.raw());
  if (!leaves) return true;
  task.ring.run_of = rows.left_over;
  attend(task);
  return true;
}

// All layers of a pass that have the same window share them.
SdpaRows CudaDevice::sdpa_rows_of(const RingTask& ring, std::int64_t window, std::int64_t segments, std::int64_t rows) {
  const auto apart = [](std::int64_t n) { return (n + 3) / 4 * 4; };  // 16 bytes, as cuDNN takes tensors to be aligned
  const std::int64_t lengths = apart(rows), offsets = apart(rows + 1);
  grow(sdpa_rows_, static_cast<std::size_t>(2 * (lengths + offsets) + ring.tokens) * sizeof(std::int32_t));
  auto* const at = static_cast<std::int32_t*>(sdpa_rows_.raw());
  const SdpaRows out{at, at + lengths, at + 2 * lengths, at + 2 * lengths + offsets, at + 2 * (lengths + offsets)};
  const RowsKey key{window, ring.size, ring.heads, ring.kv_heads, ring.head_dim, rows};
  if (rows_of_ != key) must(cuda::sdpa_rows(queue_, {ring, window, segments, rows, out}));
  rows_of_ = key;
  return out;
}

}  // namespace kvmesh::cuda
