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
  static constexpr std::int64_t default_chunk = 1 << 20;

  /// left[j] = left[j] + right[j]
  using Add = std::function<void(std::span<float> left, std::span<const float> right)>;
  static void add(std::span<float> left, std::span<const float> right);

  /// Of `terms` vectors of `size` elements, in host memory; rank r of `ranks`, which must outlive this, gives split(terms, ranks.size(), r) of them.
  /// At most `chunk` elements of a node go from one rank to another at a time.
  TreeSum(Communicator& ranks, std::int64_t terms, std::int64_t size, Add add_to = add, std::int64_t chunk = default_chunk);

  /// Bytes that `rank` of owned.size() ranks has for such a sum at once, those while it is exchanged included.
  static std::int64_t memory(std::int64_t terms, std::int64_t size, std::span<const Range> owned, int rank, std::int64_t chunk = default_chunk);

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
  static void grow(std::int64_t terms, std::vector<Node>& stack, Node node, const std::function<void()>& join);
  static std::vector<Node> nodes_of(std::int64_t terms, int rank, int ranks);

  Communicator& ranks_;
  std::int64_t terms_, size_, chunk_;
  Add add_;
  Range own_;
  std::int64_t pushed_ = 0;
  std::vector<Node> nodes_;     // this rank's, from left to right
  std::vector<Tensor> sums_;    // [size] each: theirs, and behind them those not in use
};

}  // namespace kvmesh
