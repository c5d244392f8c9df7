// Who owns what.
#include "model/train/muon_blocks.h"
#include "model/train/optimizer.h"

#include <algorithm>
#include <utility>

namespace kvmesh {
namespace {

/// Work for one element, in elements that AdamW moves: Newton and Schulz's products beside reading and writing memory.
double work_of(const Matrix& m, const OptimizerOptions& o) {
  if (!o.muon || m.group != Group::rest) return 1;
  const Blocks b = blocks_of(m);
  constexpr double flops_per_element = 500;
  return 1 + o.newton_schulz_steps * static_cast<double>(b.height) * (4 + 2 * static_cast<double>(b.height) / static_cast<double>(b.width)) / flops_per_element;
}

/// Neighbouring matrices, [matrices[0].offset, end), among the ranks.
std::vector<Range> divide(std::span<const Matrix> matrices, std::int64_t end, const OptimizerOptions& o, int ranks) {
  double total = 0;
  for (const Matrix& m : matrices) total += work_of(m, o) * static_cast<double>(m.size());
  std::vector<Range> owners;
  std::int64_t begin = matrices.front().offset;
  for (int r = 1; r < ranks; ++r) {
    const double target = total * r / ranks;
    double before = 0;
    std::int64_t cut = end;
    for (const Matrix& m : matrices) {
      const double work = work_of(m, o), all = work * static_cast<double>(m.size());
      if (before + all < target) {
        before += all;
        continue;
      }
      const bool whole = o.muon && m.group == Group::rest;
      const double share = (target - before) / all;
      cut = m.offset;
      if (!whole) cut += static_cast<std::int64_t>(share * static_cast<double>(m.size())) / TrainOps::square_block * TrainOps::square_block;  // a sum of squares is one rank's
      else if (share > 0.5) cut += (m.size() + 15) / 16 * 16;
      break;
    }
    cut = std::max(cut, begin);
    owners.push_back({begin, cut});
    begin = cut;
  }
  owners.push_back({begin, end});
  return owners;
}

}  // namespace

Owners divide(const ParamLayout& layout, const OptimizerOptions& o, int ranks) {
  const std::span<const Matrix> all = layout.matrices;
  Owners owners(static_cast<std::size_t>(ranks));
  for (const auto& [from, to] : {std::pair<std::size_t, std::size_t>{0, 1}, {1, all.size() - 1}, {all.size() - 1, all.size()}}) {
    if (from == to) continue;
    const std::vector<Range> stretches = divide(all.subspan(from, to - from), to < all.size() ? all[to].offset : layout.size, o, ranks);
    for (std::size_t r = 0; r < owners.size(); ++r) owners[r].push_back(stretches[r]);
  }
  return owners;
}

}  // namespace kvmesh
