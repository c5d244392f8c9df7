// Weights, activations, and what a row costs.
#include "model/memory.h"

#include "model/gpt.h"

#include <algorithm>

namespace kvmesh {
namespace {

constexpr std::int64_t alignment = 256;  // what an allocation is rounded up to, at most

std::int64_t aligned(std::int64_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

}  // namespace

std::string readable_bytes(std::int64_t bytes) {
  constexpr double mebi = 1 << 20, gibi = 1 << 30;
  return static_cast<double>(bytes) < gibi ? fmt::format("{:.1f} MiB", static_cast<double>(bytes) / mebi) : fmt::format("{:.2f} GiB", static_cast<double>(bytes) / gibi);
}

MemoryNeeds memory_needs(const ModelConfig& config, DType dtype, const Device& device, bool sync_logits, Quantize quantize) {
  const std::int64_t d = config.d_emb, h = config.head_dim(), heads = config.q_heads * h, kv_heads = config.kv_heads * h, vocab = config.vocab_size;
  const auto width = static_cast<std::int64_t>(size_of(dtype)), f32 = static_cast<std::int64_t>(size_of(DType::f32));
  MemoryNeeds needs;
  needs.weights = aligned(static_cast<std::int64_t>(weights_bytes(config, dtype, device, quantize)));
  const std::int64_t mlp = config.mlp_columns() + (config.activation == Activation::swiglu ? config.mlp_width() : 0);
  const std::int64_t per_token = (3 * d + heads + 2 * kv_heads + 2 * heads + mlp) * width + static_cast<std::int64_t>(sizeof(std::int32_t));  // x, normed, last, qkv, q, attended, hidden and gated, id
  needs.activations = aligned(Gpt::chunk_tokens * per_token) + (config.learned_positions > 0 ? 0 : aligned(config.seqlen * h * f32));
  needs.row = 2 * config.num_layers * config.seqlen * kv_heads * width + vocab * f32;
  needs.gathered_row = sync_logits ? vocab * f32 : 0;
  return needs;
}

std::int64_t largest_batch(const MemoryNeeds& needs, std::int64_t available, int ranks) {
  const std::int64_t rows = needs.row + needs.gathered_row * ranks;  // what one row more on every rank costs each of them
  return std::max<std::int64_t>(0, (available - needs.bytes(0, 0)) / rows) * ranks;
}

void check_memory(const MemoryNeeds& needs, std::int64_t available, std::int64_t batch, int ranks) {
  const std::int64_t rows = (batch + ranks - 1) / ranks, bytes = needs.bytes(rows, batch);
  if (bytes <= available) return;
  const std::int64_t largest = largest_batch(needs, available, ranks);
  fail(Fault::usage, "--batch-size {} needs {} of memory on a rank: {} for weights, {} for activations, {} for each of {} rows; {} are free: {}", batch, readable_bytes(bytes),
       readable_bytes(needs.weights), readable_bytes(needs.activations), readable_bytes(needs.row + needs.gathered_row * batch / rows), rows, readable_bytes(available),
       largest > 0 ? fmt::format("--batch-size {} fits", largest) : "not even one row fits");
}

}  // namespace kvmesh
