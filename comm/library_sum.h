// A sum by the communication library's own all-reduce, which knows the network. In which order it adds is its own affair, so that the bits depend on the number
// of ranks, and may on more.
#pragma once

#include "comm/rounds.h"
#include "comm/vector_sum.h"

namespace kvmesh {

class LibrarySum final : public VectorSum {
 public:
  /// In host memory; `ranks` must outlive this. A rank adds its own terms from left to right, with `add_to`.
  LibrarySum(Communicator& ranks, SumPlan plan, Add add_to = add);

  /// Bytes that `rank` has for such a sum.
  static std::int64_t memory(const SumPlan& plan, int rank);

  Range own_terms() const override { return own_; }
  Tensor next() override;
  void push() override;
  Tensor begin(const Tensor& out) override;
  void complete(Range piece) override;
  void finish() override;

 private:
  Communicator& ranks_;
  SumPlan plan_;
  Add add_;
  Range own_;
  std::int64_t pushed_ = 0;
  Tensor sum_, term_;  // [size]: of the terms so far; the next one, if it is not the first
  std::size_t completed_ = 0;
  Tensor out_;
  Rounds rounds_;  // one a piece
};

}  // namespace kvmesh
