#include "comm/library_sum.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kvmesh {

LibrarySum::LibrarySum(Communicator& ranks, SumPlan plan, Add add_to)
    : ranks_(ranks),
      plan_(std::move(plan)),
      add_(std::move(add_to)),
      rounds_([this](std::size_t i) { return ranks_.begin_library_sum(sum_.slice(plan_.pieces[i].begin, plan_.pieces[i].end)); },
              [this](std::size_t i, bool) {
                const OwnedPart own = owned_part(plan_, static_cast<std::size_t>(ranks_.rank()), plan_.pieces[i]);
                std::copy_n(sum_.data<float>() + own.part.begin, own.part.size(), out_.data<float>() + own.at);
              }) {
  check_plan(plan_, ranks.size());
  own_ = split(plan_.terms, ranks.size(), ranks.rank());
}

std::int64_t LibrarySum::memory(const SumPlan& plan, int rank) {
  return (split(plan.terms, std::ssize(plan.owned), rank).size() > 1 ? 2 : 1) * plan.size * static_cast<std::int64_t>(sizeof(float));
}

Tensor LibrarySum::next() {
  Tensor& vector = pushed_ == 0 ? sum_ : term_;
  if (!vector.defined()) vector = host_tensor(DType::f32, {plan_.size});
  return vector;
}

void LibrarySum::push() {
  check(pushed_ + 1 < own_.size(), "a rank that has {} terms of a sum gives one more", own_.size());
  const Tensor term = next();
  if (pushed_++ > 0) add_(sum_.span<float>(), term.span<float>());
}

Tensor LibrarySum::begin(const Tensor& out) {
  const std::int64_t owned = size_of(plan_.owned[static_cast<std::size_t>(ranks_.rank())]);
  check(pushed_ + 1 == own_.size() || own_.size() == 0, "a rank gave {} of its {} terms of a sum", pushed_, own_.size());
  check(out.dtype() == DType::f32 && out.numel() == owned, "{} elements of a sum do not go into {}{}", owned, name_of(out.dtype()), to_string(out.shape()));
  out_ = out;
  completed_ = 0;
  const Tensor last = next();
  if (own_.size() == 0) std::memset(last.raw(), 0, last.bytes());
  rounds_.start(plan_.pieces.size(), ranks_.size() > 1);
  return own_.size() > 0 ? last : Tensor();
}

void LibrarySum::complete(Range piece) {
  check(completed_ < plan_.pieces.size() && piece == plan_.pieces[completed_], "elements {} to {} of a sum are not the next to be complete", piece.begin, piece.end);
  const auto part_of = [&](const Tensor& vector) { return vector.slice(piece.begin, piece.end).span<float>(); };
  if (pushed_ > 0) add_(part_of(sum_), part_of(term_));
  rounds_.allow(++completed_);
}

void LibrarySum::finish() {
  while (completed_ < plan_.pieces.size()) complete(plan_.pieces[completed_]);
  rounds_.finish();
  pushed_ = 0;
}

}  // namespace kvmesh
