// Rows of text on their way into the model.
#pragma once

#include "runtime/structs.h"

#include <cstdint>
#include <vector>

namespace kvmesh {

/// One micro-batch. Padding is absent: rows may be of different lengths.
struct TrainBatch {
  std::vector<std::int32_t> ids, targets;  ///< [T]; a target is the next token's id; -1: no loss
  std::vector<Segment> segments;           ///< ascending offsets without gaps; each begins where its tokens see no earlier ones; place: row of the micro-batch
};

}  // namespace kvmesh
