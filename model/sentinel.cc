// Parts of the weights, hashed in turn.
#include "model/sentinel.h"

#include "model/hash.h"

#include <algorithm>

namespace kvmesh {
namespace {

constexpr std::int64_t buffer_bytes = 1 << 18;  // of one copy from the device

}  // namespace

WeightWatch::WeightWatch(const Gpt& gpt) : device_(gpt.device()), buffer_(host_tensor(DType::u8, {buffer_bytes})) {
  const auto add = [&](const Tensor& t) {
    if (!t.defined()) return;
    tensors_.emplace_back(nullptr, t.raw(), DType::u8, Shape{static_cast<std::int64_t>(t.bytes())});
    bytes_ += tensors_.back().numel();
  };
  const GptWeights& w = gpt.weights();
  const auto add_norm = [&](const GptWeights::NormWeights& norm) { add(norm.weight), add(norm.bias); };
  add(w.embed), add(w.positions);
  for (const GptWeights::Block& block : w.blocks) {
    for (const Weight* weight : {&block.qkv, &block.wo, &block.fc1, &block.fc2}) add(weight->data), add(weight->bias);
    add_norm(block.attn_norm), add_norm(block.mlp_norm);
    add(block.q_norm), add(block.k_norm);
  }
  add_norm(w.norm), add(w.lm_head.data);
}

std::uint64_t WeightWatch::next() {
  const std::int64_t from = bytes_ * part_ / parts, to = bytes_ * (part_ + 1) / parts;  // of all tensors one after another
  auto hash = static_cast<std::uint64_t>(part_);
  std::int64_t before = 0;
  for (const Tensor& t : tensors_) {
    const std::int64_t end = std::min(to - before, t.numel());
    for (std::int64_t at = std::max<std::int64_t>(from - before, 0); at < end; at += buffer_bytes) {
      const std::int64_t n = std::min(buffer_bytes, end - at);
      const Tensor piece = buffer_.slice(0, n);
      device_.copy(t.slice(at, at + n), piece);
      hash = hash_of(piece.span<std::uint8_t>(), hash);
    }
    before += t.numel();
  }
  const auto part = static_cast<std::size_t>(part_);
  if (part < known_.size()) {
    if (hash != known_[part]) fail(Fault::rank, "the weights in memory have changed since they were loaded (part {} of {})", part_ + 1, std::int64_t{parts});
  } else {
    known_.push_back(hash);
  }
  part_ = (part_ + 1) % parts;
  return hash;
}

}  // namespace kvmesh
