// What Muon makes orthogonal as one. For the .cc files of the optimizer.
#pragma once

#include "model/train/parameters.h"

namespace kvmesh {

/// What is made orthogonal as one: [height, width] with height ≤ width, `heads` of them one above the other, after a transposition of the whole if `turned`.
struct Blocks {
  std::int64_t height, width;
  bool turned;
};
inline Blocks blocks_of(const Matrix& m) {
  const std::int64_t rows = m.heads_are_rows ? m.rows / m.heads : m.rows, cols = m.heads_are_rows ? m.cols : m.cols / m.heads;
  const bool turned = !m.heads_are_rows && (m.heads > 1 || rows > cols);
  return turned ? Blocks{cols, rows, true} : Blocks{rows, cols, false};
}

}  // namespace kvmesh
