#include "model/train/train_memory.h"

#include "comm/library_sum.h"
#include "comm/tree_sum.h"
#include "model/memory.h"
#include "model/train/train_state.h"

#include <algorithm>

namespace kvmesh {

TrainMemory train_memory(const ModelConfig& c, DType dtype, Device& device, const ParamLayout& layout, const TrainerOptions& options, int rank, int ranks,
                         std::int64_t samples) {
  const std::int64_t D = c.d_emb, h = c.head_dim(), heads = c.q_heads * h, kv = c.kv_heads * h, V = c.vocab_size, L = c.num_layers, T = options.batch.micro_rows * c.seqlen;
  const auto f32 = static_cast<std::int64_t>(size_of(DType::f32)), width = static_cast<std::int64_t>(size_of(dtype)), saved_width = static_cast<std::int64_t>(size_of(c.dtype));
  const auto weight = [&](std::int64_t k, std::int64_t n) { return static_cast<std::int64_t>(device.weight_bytes(dtype, k, n)); };
  const auto twice = [&](std::int64_t k, std::int64_t n) { return weight(k, n) + weight(n, k); };
  const SumPlan plan = gradient_plan(layout, options.batch, divide(layout, options.optimizer, ranks));
  const std::vector<Range>& own = plan.owned[static_cast<std::size_t>(rank)];
  const bool f32_activations = dtype == DType::f32;

  TrainMemory m;
  m.parameters = f32 * layout.size;
  const Backprop::HeadCut cut = Backprop::head_cut(c, T, options.recompute);
  std::int64_t head = weight(D, V);
  for (std::int64_t part = 0; part < cut.parts; ++part) head += weight(std::min(cut.part, V - part * cut.part), D);
  m.weights = V * D * width + head + L * (twice(D, heads + 2 * kv) + twice(heads, D) + twice(D, 4 * D) + twice(4 * D, D)) + std::max(V, 4 * D) * D * width + c.seqlen * h * f32;
  m.gradients = (options.library_sum ? LibrarySum::memory(plan, rank) : TreeSum::memory(plan, rank)) + f32 * size_of(own);
  m.optimizer = Optimizer::memory(layout, device, dtype, options.optimizer, own);

  // Backprop's, by token: what a block keeps (with its keys and values), what enters the blocks, and what one pass or less needs.
  const std::int64_t block = heads + 2 * kv + 2 * heads + 5 * D + 2 * kv, inputs = (L + 1) * D;
  const std::int64_t pass = D + (f32_activations ? 0 : D) + 4 * D + heads + 2 * kv + heads + 2 * kv + std::max(D, heads) + 4 * D;
  m.activations = T * width * ((options.recompute ? 1 : L) * block + inputs + pass) + T * D * f32 + std::max(weight(T, 4 * D), weight(cut.tokens, cut.part)) +
                  cut.tokens * (cut.part * (cut.slots * f32 + (f32_activations ? 0 : width)) + D * f32) + T * (3 * f32 + static_cast<std::int64_t>(sizeof(std::int32_t)));

  // The first rank collects both of the optimizer's vectors, and copies them, the weights, and the parameters where the weights do not say them exactly.
  if (rank == 0) m.saving = layout.size * (4 * f32 + saved_width + (c.dtype == DType::f32 ? 0 : f32)) + state_buffer(plan.owned);

  if (samples > 0) {
    const MemoryNeeds needs = memory_needs(c, dtype, device, false);
    m.sampling = needs.activations + needs.row * split(samples, ranks, rank).size();
  }
  if (device.free_bytes() >= 0) {
    m.device = m.parameters + f32 * (layout.size + size_of(own)) + m.weights + m.optimizer + m.activations + m.sampling + T * c.q_heads * 3 * f32;  // the last are attention's facts
    m.weights = m.optimizer = m.activations = m.sampling = 0;
  }
  return m;
}

std::string to_string(const TrainMemory& m) {
  return fmt::format("{}: {} for parameters, {} for weights, {} for gradients, {} for the optimizer, {} for activations, {} for saving{}{}", readable_bytes(m.bytes()),
                     readable_bytes(m.parameters), readable_bytes(m.weights), readable_bytes(m.gradients), readable_bytes(m.optimizer), readable_bytes(m.activations),
                     readable_bytes(m.saving), m.sampling > 0 ? fmt::format(", {} for samples", readable_bytes(m.sampling)) : "",
                     m.device > 0 ? fmt::format("; {} on the device", readable_bytes(m.device)) : "");
}

}  // namespace kvmesh
