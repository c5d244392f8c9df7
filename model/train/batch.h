// Rows of text on their way into the model.
#pragma once

#include "runtime/structs.h"

#include <cstdint>
#include <vector>

namespace kvmesh {

/// A micro-batch: T packed tokens. Padding is absent, so that rows may be of different lengths.
struct TrainBatch {
  std::vector<std::int32_t> ids;      ///< [T]
  std::vector<std::int32_t> targets;  ///< [T], the next token; -1: no loss
  std::vector<Segment> segments;      ///< they cover [0, T) in order; place: the row within the micro-batch; start = begin: the place within the row
  std::int64_t rows = 0;
};

}  // namespace kvmesh
