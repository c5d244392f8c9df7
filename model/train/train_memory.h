// How much memory training will need on a rank, worked out before any of it is asked for.
#pragma once

#include "model/train/trainer.h"

#include <cstdint>
#include <string>

namespace kvmesh {

/// Bytes on one rank, of the host's memory. A device with memory of its own has the parameters and one gradient besides, and the host has no weights, optimizer,
/// activations and samples then.
struct TrainMemory {
  std::int64_t parameters = 0;   ///< the vector
  std::int64_t weights = 0;      ///< for products, as they are and turned
  std::int64_t gradients = 0;    ///< sums of micro-batches', and their exchange
  std::int64_t optimizer = 0;
  std::int64_t activations = 0;  ///< of a micro-batch, with the head's logits
  std::int64_t saving = 0;       ///< copies, on rank 0 only, as long as they are written
  std::int64_t sampling = 0;
  std::int64_t device = 0;       ///< of a device with memory of its own, all that it holds; not in bytes()

  std::int64_t bytes() const { return parameters + weights + gradients + optimizer + activations + saving + sampling; }
};

/// Of a Trainer on `rank` of `ranks`, whose checkpoints are saved, with `samples` texts gone on with by all ranks together. options.batch.leaves is not looked at.
TrainMemory train_memory(const ModelConfig& config, DType dtype, Device& device, const ParamLayout& layout, const TrainerOptions& options, int rank, int ranks,
                         std::int64_t samples);

/// "1.20 GiB: 0.20 GiB for parameters, …"
std::string to_string(const TrainMemory& memory);

}  // namespace kvmesh
