// How much of a device's memory a model will need, worked out before any of it is asked for.
#pragma once

#include "model/config.h"
#include "runtime/device.h"

#include <cstdint>
#include <string>

namespace kvmesh {

/// Bytes on one rank; `row` for each row in flight there, the rest once.
struct MemoryNeeds {
  std::int64_t weights = 0;
  std::int64_t activations = 0;  ///< of one pass, with the RoPE table
  std::int64_t row = 0;          ///< keys and values of `seqlen` tokens, and a row of logits
  std::int64_t gathered_row = 0; ///< --sync logits: for each row in flight on the whole mesh

  std::int64_t bytes(std::int64_t rows, std::int64_t mesh_rows) const { return weights + activations + row * rows + gathered_row * mesh_rows; }
};

/// "3.2 MiB", "1.20 GiB"
std::string readable_bytes(std::int64_t bytes);

/// Of a generator (model/generate.h); `sync_logits`: every rank gets all ranks' logits.
MemoryNeeds memory_needs(const ModelConfig& config, DType dtype, const Device& device, bool sync_logits, Quantize quantize = Quantize::none);

/// The largest batch of the whole mesh of `ranks` such that no rank needs more than `available` bytes, 0 where not even one row a rank fits.
std::int64_t largest_batch(const MemoryNeeds& needs, std::int64_t available, int ranks);

/// An Error that has the numbers in it unless `batch` rows on `ranks` ranks fit into `available` bytes on each.
void check_memory(const MemoryNeeds& needs, std::int64_t available, std::int64_t batch, int ranks);

}  // namespace kvmesh
