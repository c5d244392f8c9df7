// A stack of nodes, one exchange a chunk, the same stack again.
#include "comm/tree_sum.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kvmesh {
namespace {

/// f(level, index) of the largest nodes without a gap at their end that make up the leaves, from left to right.
template <typename F>
void each_whole(Range leaves, const F& f) {
  for (std::int64_t i = leaves.begin; i < leaves.end;) {
    int level = 0;
    while (i % (std::int64_t{2} << level) == 0 && i + (std::int64_t{2} << level) <= leaves.end) ++level;
    f(level, i >> level);
    i += std::int64_t{1} << level;
  }
}

}  // namespace

void TreeSum::add(std::span<float> left, std::span<const float> right) {
  float* const to = left.data();
  const float* const from = right.data();
  for (std::size_t i = 0; i < left.size(); ++i) to[i] = to[i] + from[i];
}

TreeSum::TreeSum(Communicator& ranks, std::int64_t terms, std::int64_t size, Add add_to, std::int64_t chunk)
    : ranks_(ranks), terms_(terms), size_(size), chunk_(chunk), add_(std::move(add_to)), own_(split(terms, ranks.size(), ranks.rank())) {
  check(terms >= 1 && size >= 0 && chunk >= 1, "a sum of {} vectors of {} elements, {} at a time, cannot be", terms, size, chunk);
}

void TreeSum::grow(std::int64_t terms, std::vector<Node>& stack, Node node, const std::function<void()>& join) {
  stack.push_back(node);
  for (;;) {
    Node& last = stack.back();
    const bool is_left = last.index % 2 == 0;
    const Node* const before = stack.size() > 1 ? &stack[stack.size() - 2] : nullptr;
    if (!is_left && before != nullptr && before->level == last.level) {  // its neighbour, so its other half
      join();
      stack.pop_back();
    } else if (!is_left || last.index == 0 || (last.index + 1) << last.level < terms) {
      return;  // its other half is another rank's, or is still to come, or it is the root or on the way there
    }
    stack.back() = {stack.back().level + 1, stack.back().index / 2};
  }
}

std::vector<TreeSum::Node> TreeSum::nodes_of(std::int64_t terms, int rank, int ranks) {
  std::vector<Node> nodes;
  each_whole(split(terms, ranks, rank), [&](int level, std::int64_t index) { grow(terms, nodes, {level, index}, [] {}); });
  return nodes;
}

std::int64_t TreeSum::memory(std::int64_t terms, std::int64_t size, std::span<const Range> owned, int rank, std::int64_t chunk) {
  const int ranks = static_cast<int>(owned.size());
  std::vector<Node> nodes;
  std::int64_t sums = 0, exchanged = 0;
  each_whole(split(terms, ranks, rank), [&](int level, std::int64_t index) {
    sums = std::max(sums, std::ssize(nodes) + level + 1);  // of its last leaf, and of what is left of it
    grow(terms, nodes, {level, index}, [] {});
  });
  for (int r = 0; r < ranks; ++r) {
    exchanged += std::ssize(nodes) * std::min(chunk, owned[static_cast<std::size_t>(r)].size());
    exchanged += std::ssize(nodes_of(terms, r, ranks)) * std::min(chunk, owned[static_cast<std::size_t>(rank)].size());
  }
  return (sums * size + exchanged) * static_cast<std::int64_t>(sizeof(float));
}

Tensor TreeSum::next() {
  if (sums_.size() == nodes_.size()) sums_.push_back(host_tensor(DType::f32, {size_}));
  return sums_[nodes_.size()];
}

void TreeSum::push() {
  check(pushed_ < own_.size(), "a rank that has {} terms of a sum gives one more", own_.size());
  next();
  grow(terms_, nodes_, {0, own_.begin + pushed_}, [&] { add_(sums_[nodes_.size() - 2].span<float>(), sums_[nodes_.size() - 1].span<float>()); });
  ++pushed_;
}

void TreeSum::reduce_scatter(std::span<const Range> owned, const Tensor& out) {
  const auto ranks = static_cast<std::size_t>(ranks_.size()), own = static_cast<std::size_t>(ranks_.rank());
  check(pushed_ == own_.size(), "a rank gave {} of its {} terms of a sum", pushed_, own_.size());
  check(owned.size() == ranks, "a sum's elements are divided among {} ranks, but there are {}", owned.size(), ranks);
  check(out.dtype() == DType::f32 && out.numel() == owned[own].size(), "{} elements of a sum do not go into {}{}", owned[own].size(), name_of(out.dtype()), to_string(out.shape()));
  std::vector<std::vector<Node>> nodes;
  std::int64_t longest = 0, most_sent = 0, most_received = 0;
  for (std::size_t r = 0; r < ranks; ++r) {
    check(0 <= owned[r].begin && owned[r].begin <= owned[r].end && owned[r].end <= size_, "elements {} to {} of a sum of {} cannot be", owned[r].begin, owned[r].end, size_);
    longest = std::max(longest, owned[r].size());
    nodes.push_back(nodes_of(terms_, static_cast<int>(r), ranks_.size()));
    most_sent += std::ssize(nodes_) * std::min(chunk_, owned[r].size());
    most_received += std::ssize(nodes.back()) * std::min(chunk_, owned[own].size());
  }
  const Tensor sending = host_tensor(DType::f32, {most_sent}), receiving = host_tensor(DType::f32, {most_received});
  for (std::int64_t done = 0; done < longest; done += chunk_) {
    const auto part = [&](std::size_t r) { return Range{std::min(owned[r].begin + done, owned[r].end), std::min(owned[r].begin + done + chunk_, owned[r].end)}; };
    const std::int64_t length = part(own).size();
    std::vector<std::int64_t> send, receive;
    std::int64_t sent = 0, received = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      sent += send.emplace_back(std::ssize(nodes_) * part(r).size());
      received += receive.emplace_back(std::ssize(nodes[r]) * length);
    }
    float* to = sending.data<float>();
    for (std::size_t r = 0; r < ranks; ++r) {
      for (std::size_t i = 0; i < nodes_.size(); ++i) to = std::copy_n(sums_[i].data<float>() + part(r).begin, part(r).size(), to);
    }
    ranks_.exchange(sending.slice(0, sent), send, receiving.slice(0, received), receive);

    std::vector<Node> stack;
    std::vector<std::span<float>> sums;  // of the stack's nodes, and one more
    float* from = receiving.data<float>();
    for (const auto& of_rank : nodes) {
      for (const Node node : of_rank) {
        sums.resize(stack.size());
        sums.emplace_back(from, static_cast<std::size_t>(length));
        from += length;
        grow(terms_, stack, node, [&] { add_(sums[stack.size() - 2], sums[stack.size() - 1]); });
      }
    }
    std::copy(sums[0].begin(), sums[0].end(), out.data<float>() + done);
  }
  nodes_.clear();
  pushed_ = 0;
}

}  // namespace kvmesh
