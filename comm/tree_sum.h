// A sum that does not depend on the number of ranks: its terms, 0 … n-1, are the leaves of one fixed binary tree. Node (k, i) covers the leaves
// [i · 2^k, (i + 1) · 2^k) below n, and is its left half plus its right one in float32, or the left one alone where there are no others. Each
// rank has a contiguous part of the leaves and sums the largest whole nodes in it; the ranks exchange those, and each combines its own elements.
#pragma once

#include "comm/rounds.h"
#include "comm/vector_sum.h"

namespace kvmesh {

class TreeSum final : public VectorSum {
 public:
  static constexpr std::int64_t default_chunk = 1 << 19;

  /// In host memory; `ranks` must outlive this. At most `chunk` elements of a node go from one rank to another at a time. `add_to` is called by the caller's thread.
  TreeSum(Communicator& ranks, SumPlan plan, Add add_to = add, std::int64_t chunk = default_chunk);

  /// Bytes that `rank` has for such a sum at once, those while it is exchanged included.
  static std::int64_t memory(const SumPlan& plan, int rank, std::int64_t chunk = default_chunk);

  Range own_terms() const override { return own_; }
  Tensor next() override;
  void push() override;
  Tensor begin(const Tensor& out) override;
  void complete(Range piece) override;
  void finish() override;

 private:
  struct Node {
    int level;
    std::int64_t index;
  };
  /// One exchange: what every rank gets in it, and where own elements go.
  struct Round {
    std::vector<Range> parts;
    std::int64_t at;
  };
  struct Buffers {
    Tensor sending, receiving;
  };
  /// Puts `node` on the stack of nodes that end where it begins, and joins what can be joined; `join` is called when the last two become one.
  static void grow(std::int64_t terms, std::vector<Node>& stack, Node node, const std::function<void()>& join);
  static std::vector<Node> nodes_of(std::int64_t terms, int rank, int ranks);
  /// All rounds, and how many those are that need the first piece, the first two, …
  static std::vector<Round> rounds_of(const SumPlan& plan, std::size_t rank, std::int64_t chunk, std::vector<std::size_t>* of_pieces = nullptr);
  /// Elements that a round needs at most, sent and received.
  static std::pair<std::int64_t, std::int64_t> exchanged(const SumPlan& plan, std::span<const Round> rounds, std::size_t rank);

  std::unique_ptr<Pending> begin_round(std::size_t round);
  void land_round(std::size_t round, bool behind);

  Communicator& ranks_;
  SumPlan plan_;
  Add add_;
  Range own_;
  std::int64_t pushed_ = 0;
  std::vector<Node> nodes_;     // this rank's, from left to right
  std::vector<Tensor> sums_;    // [size] each: theirs, and behind them those not in use
  std::vector<std::size_t> joins_;  // of the last term: sums that are added to the one before them, in this order
  std::vector<std::vector<Node>> all_nodes_;  // [rank], when all terms are there
  std::vector<Round> rounds_;
  std::vector<std::size_t> of_pieces_;
  std::size_t completed_ = 0;  // pieces
  Tensor out_;
  Buffers buffers_[Rounds::under_way];
  Rounds exchange_;
};

}  // namespace kvmesh
