// Watches over the weights while they are used: memory that silently changes, or another host's that differs, would change results without a word.
#pragma once

#include "model/gpt.h"

#include <vector>

namespace kvmesh {

/// Hashes the weights part by part, so that no step pays for all of them.
class WeightWatch {
 public:
  static constexpr std::int64_t parts = 256;

  /// Borrows the model.
  explicit WeightWatch(const Gpt& gpt);

  /// Hash of the next part. An Error(Fault::rank) if it is not what it was the last time.
  std::uint64_t next();

 private:
  Device& device_;
  std::vector<Tensor> tensors_;       // u8, all weights
  std::int64_t bytes_ = 0, part_ = 0;
  std::vector<std::uint64_t> known_;  // [≤ parts]: of parts that have been hashed before
  Tensor buffer_;                     // host
};

}  // namespace kvmesh
