// Attention by our own kernels, or by cuDNN with our own for what it leaves over; and its gradients by cuDNN where it does them.
#include "runtime/cuda/cuda_device.h"
#include "runtime/say.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <mutex>
#include <set>
#include <utility>

namespace kvmesh::cuda {
namespace {

constexpr std::int64_t fewest_queries = 64;  // of a plan for prompts: shorter runs share it

/// Once a process, whichever device says it.
void tell_once(const std::string& text) {
  static std::mutex mutex;
  static std::set<std::string> told;
  const std::lock_guard lock(mutex);
  if (told.insert(text).second) say("kvmesh: note: --attention cudnn: {}\n", text);
}

std::int64_t rounded_up(std::int64_t n) { return static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(n))); }

bool wraps(const Segment& s, std::int64_t size) { return s.start % size + (s.begin - s.start) + s.count > size; }

/// Why no pass like this is for cuDNN; empty: one may be. Of all places, for a step that is recorded now is repeated for others.
std::string why_not_cudnn(const RingTask& r, std::int64_t places) {
  if (!r.bf16) return "float32 is attended by kvmesh's own kernels";
  const std::int64_t elements = std::max(places * r.kv_heads * r.size, r.tokens * r.heads) * r.head_dim;
  return elements > CudnnAttention::most_elements() ? "caches of 2^31 elements a layer are attended by kvmesh's own kernels" : "";
}

/// Whether they are rows of one length, each from its place's first slot on: cuDNN need not be told where they begin.
bool equally_long(std::span<const Segment> segments, std::int64_t size) {
  const std::int64_t count = segments.front().count;
  for (std::int64_t i = 0; i < std::ssize(segments); ++i) {
    const Segment& s = segments[static_cast<std::size_t>(i)];
    if (s.count != count || s.offset != i * count || s.place != i || s.begin % size != 0) return false;
  }
  return true;
}

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
  if (const std::string why = why_not_cudnn(r, places); !why.empty()) return tell_once(why), false;
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
  const SdpaRows out{at, at + lengths, at + 2 * lengths, at + 2 * lengths + offsets, nullptr, at + 2 * (lengths + offsets)};
  const RowsKey key{window, ring.size, ring.heads, ring.kv_heads, ring.head_dim, rows};
  if (rows_of_ != key) must(cuda::sdpa_rows(queue_, {ring, window, segments, rows, out}));
  rows_of_ = key;
  return out;
}

bool CudaTrainOps::attention_backward_by_cudnn(const AttentionBackwardTask& task, std::span<const Segment> segments, std::int64_t places) {
  const RingTask& r = task.ring;
  if (const std::string why = why_not_cudnn(r, places); !why.empty()) return tell_once(why), false;
  SdpaShape shape{std::ssize(segments), task.longest, r.heads, r.kv_heads, r.size, r.head_dim, task.window, SdpaPass::statistics, !equally_long(segments, r.size)};
  if (shape.ragged) {
    shape.rows = rounded_up(shape.rows);
    shape.queries = std::min(r.size, std::max(fewest_queries, rounded_up(task.longest)));
  }
  SdpaShape backward = shape;
  backward.pass = SdpaPass::backward;
  std::size_t workspace = 0;
  for (const SdpaShape& s : {shape, backward}) {
    if (const std::string& why = cudnn_->refusal(s); !why.empty()) {
      tell_once(fmt::format("cuDNN does not differentiate {} with {} query heads over {} key heads of {} elements ({}); kvmesh's own kernels do",
                            s.ragged ? "rows of several lengths" : "rows of one length", r.heads, r.kv_heads, r.head_dim, why));
      return false;
    }
    workspace = std::max(workspace, cudnn_->workspace_bytes(s));
  }
  if (workspace > CudnnAttention::most_workspace()) {
    tell_once(fmt::format("micro-batches that cuDNN would want more than {} MiB to differentiate are left to kvmesh's own kernels", CudnnAttention::most_workspace() >> 20));
    return false;
  }

  std::size_t bytes = 0;
  const auto take = [&](std::int64_t count, std::size_t size) { return std::exchange(bytes, bytes + (static_cast<std::size_t>(count) * size + 255) / 256 * 256); };
  const std::size_t statistics_at = take(shape.rows * shape.heads * shape.queries, sizeof(float)), workspace_at = take(1, workspace);
  std::size_t numbers_at[5];
  for (std::size_t& at : numbers_at) at = take(shape.rows + 1, sizeof(std::int32_t));
  if (!cudnn_memory_.defined() || cudnn_memory_.bytes() < bytes) cudnn_memory_ = device_.empty(DType::u8, {static_cast<std::int64_t>(bytes)});
  auto* const memory = static_cast<std::byte*>(cudnn_memory_.raw());
  const auto numbers = [&](int i) { return reinterpret_cast<std::int32_t*>(memory + numbers_at[i]); };
  SdpaRows rows{};
  if (shape.ragged) {
    rows = {numbers(0), numbers(1), numbers(2), numbers(3), numbers(4), nullptr};
    must(cuda::sdpa_rows(queue_, {r, task.window, std::ssize(segments), shape.rows, rows}));
  }
  SdpaMemory m{task.q, r.k, r.v, task.dq, rows, reinterpret_cast<float*>(memory + statistics_at)};  // what it attends to again is there: dq's memory takes it
  cudnn_->enqueue(shape, m, memory + workspace_at);
  m.out = const_cast<void*>(task.out);
  m.dout = task.dout;
  m.dq = task.dq, m.dk = task.dk, m.dv = task.dv;
  cudnn_->enqueue(backward, m, memory + workspace_at);
  return true;
}

}  // namespace kvmesh::cuda
