// A sum that does not depend on the number of ranks: its terms, 0 … n-1, are the leaves of one fixed binary tree. Node (k, i) covers the leaves
// [i · 2^k, (i + 1) · 2^k) below n, and is its left half plus its right one in float32, or the left one alone where there are no others. Each
// rank has a contiguous part of the leaves and sums the largest whole nodes in it; the ranks exchange those, and each combines its own elements.
#pragma once

#include "comm/communicator.h"
#include "comm/sharding.h"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace kvmesh {

class TreeSum {
 public:
  /// left[j] = left[j] + right[j]
  using Add = std::function<void(std::span<float> left, std::span<const float> right)>;
  static void add(std::span<float> left, std::span<const float> right);

  /// Of `terms` vectors of `size` elements, in host memory; rank r of `ranks`, which must outlive this, gives split(terms, ranks.size(), r) of them.
  /// At most `chunk` elements of a node go from one rank to another at a time.
  TreeSum(Communicator& ranks, std::int64_t terms, std::int64_t size, Add add_to = add, std::int64_t chunk = 1 << 20);

  Range own_terms() const { return own_; }
  /// [size], float32, uninitialized: where this rank's next term is to be written. The same memory until push().
  Tensor next();
  /// The term is complete.
  void push();

  /// Collective, after this rank's last push(): out [owned[rank].size()] = elements owned[rank] of the sum. `owned` is the same on all ranks. Then
  /// the next sum can begin.
  void reduce_scatter(std::span<const Range> owned, const Tensor& out);

 private:
  struct Node {
    int level;
    std::int64_t index;
  };
  /// Puts `node` on the stack of nodes that end where it begins, and joins what can be joined; `join` is called when the last two become one.
  void grow(std::vector<Node>& stack, Node node, const std::function<void()>& join) const;
  std::vector<Node> nodes_of(int rank) const;

  Communicator& ranks_;
  std::int64_t terms_, size_, chunk_;
  Add add_;
  Range own_;
  std::int64_t pushed_ = 0;
  std::vector<Node> nodes_;     // this rank's, from left to right
  std::vector<Tensor> sums_;    // [size] each: theirs, and behind them those not in use
};

}  // namespace kvmesh
