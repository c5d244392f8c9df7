#include "comm/vector_sum.h"

#include <algorithm>

namespace kvmesh {

void VectorSum::add(std::span<float> left, std::span<const float> right) {
  float* const to = left.data();
  const float* const from = right.data();
  for (std::size_t i = 0; i < left.size(); ++i) to[i] = to[i] + from[i];
}

void check_plan(const SumPlan& plan, int ranks) {
  check(plan.terms >= 1 && plan.size >= 0, "a sum of {} vectors of {} elements cannot be", plan.terms, plan.size);
  check(plan.owned.size() == static_cast<std::size_t>(ranks), "a sum's elements are divided among {} ranks, but there are {}", plan.owned.size(), ranks);
  const auto check_range = [&](const Range& r) { check(0 <= r.begin && r.begin <= r.end && r.end <= plan.size, "elements {} to {} of a sum of {} cannot be", r.begin, r.end, plan.size); };
  for (const Range& piece : plan.pieces) check_range(piece);
  for (const auto& of_rank : plan.owned) {
    for (const Range& range : of_rank) check_range(range);
  }
}

OwnedPart owned_part(const SumPlan& plan, std::size_t rank, Range piece) {
  OwnedPart found;
  std::int64_t before = 0;
  for (const Range& range : plan.owned[rank]) {
    const Range part{std::max(range.begin, piece.begin), std::min(range.end, piece.end)};
    if (part.begin < part.end) {
      check(found.part.size() == 0, "elements {} to {} of a sum: rank {} owns several ranges of them", piece.begin, piece.end, rank);
      found = {part, before + part.begin - range.begin};
    }
    before += range.size();
  }
  return found;
}

}  // namespace kvmesh
