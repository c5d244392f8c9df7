// A stack of nodes, one exchange a chunk, the same stack again.
#include "comm/tree_sum.h"

#include <algorithm>
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

std::span<float> part_of(const Tensor& vector, Range part) { return vector.span<float>().subspan(static_cast<std::size_t>(part.begin), static_cast<std::size_t>(part.size())); }

}  // namespace

TreeSum::TreeSum(Communicator& ranks, SumPlan plan, Add add_to, std::int64_t chunk)
    : ranks_(ranks),
      plan_(std::move(plan)),
      add_(std::move(add_to)),
      exchange_([this](std::size_t round) { return begin_round(round); }, [this](std::size_t round, bool behind) { land_round(round, behind); }) {
  check_plan(plan_, ranks.size());
  check(chunk >= 1, "a sum cannot go {} elements at a time", chunk);
  own_ = split(plan_.terms, ranks.size(), ranks.rank());
  for (int r = 0; r < ranks.size(); ++r) all_nodes_.push_back(nodes_of(plan_.terms, r, ranks.size()));
  rounds_ = rounds_of(plan_, static_cast<std::size_t>(ranks.rank()), chunk, &of_pieces_);
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

std::vector<TreeSum::Round> TreeSum::rounds_of(const SumPlan& plan, std::size_t rank, std::int64_t chunk, std::vector<std::size_t>* of_pieces) {
  std::vector<Round> rounds;
  for (const Range& piece : plan.pieces) {
    std::vector<Range> parts;
    std::int64_t longest = 0;
    for (std::size_t r = 0; r < plan.owned.size(); ++r) longest = std::max(longest, parts.emplace_back(owned_part(plan, r, piece).part).size());
    for (std::int64_t done = 0; done < longest; done += chunk) {
      Round& round = rounds.emplace_back(Round{{}, owned_part(plan, rank, piece).at + done});
      for (const Range& part : parts) round.parts.push_back({std::min(part.begin + done, part.end), std::min(part.begin + done + chunk, part.end)});
    }
    if (of_pieces) of_pieces->push_back(rounds.size());
  }
  return rounds;
}

std::pair<std::int64_t, std::int64_t> TreeSum::exchanged(const SumPlan& plan, std::span<const Round> rounds, std::size_t rank) {
  const int ranks = static_cast<int>(plan.owned.size());
  std::int64_t own_nodes = 0, all_nodes = 0, most_sent = 0, most_received = 0;
  for (int r = 0; r < ranks; ++r) {
    const std::int64_t n = std::ssize(nodes_of(plan.terms, r, ranks));
    all_nodes += n;
    if (r == static_cast<int>(rank)) own_nodes = n;
  }
  if (ranks == 1) return {0, 0};
  for (const Round& round : rounds) {
    most_sent = std::max(most_sent, own_nodes * size_of(round.parts));
    most_received = std::max(most_received, all_nodes * round.parts[rank].size());
  }
  return {most_sent, most_received};
}

std::int64_t TreeSum::memory(const SumPlan& plan, int rank, std::int64_t chunk) {
  std::vector<Node> nodes;
  std::int64_t sums = 0;
  each_whole(split(plan.terms, std::ssize(plan.owned), rank), [&](int level, std::int64_t index) {
    sums = std::max(sums, std::ssize(nodes) + level + 1);  // of its last leaf, and of what is left of it
    grow(plan.terms, nodes, {level, index}, [] {});
  });
  const auto [sent, received] = exchanged(plan, rounds_of(plan, static_cast<std::size_t>(rank), chunk), static_cast<std::size_t>(rank));
  return (sums * plan.size + static_cast<std::int64_t>(Rounds::under_way) * (sent + received)) * static_cast<std::int64_t>(sizeof(float));
}

Tensor TreeSum::next() {
  if (sums_.size() == nodes_.size()) sums_.push_back(host_tensor(DType::f32, {plan_.size}));
  return sums_[nodes_.size()];
}

void TreeSum::push() {
  check(pushed_ + 1 < own_.size(), "a rank that has {} terms of a sum gives one more", own_.size());
  next();
  grow(plan_.terms, nodes_, {0, own_.begin + pushed_}, [&] { add_(sums_[nodes_.size() - 2].span<float>(), sums_[nodes_.size() - 1].span<float>()); });
  ++pushed_;
}

Tensor TreeSum::begin(const Tensor& out) {
  const auto own = static_cast<std::size_t>(ranks_.rank());
  check(pushed_ + 1 == own_.size() || own_.size() == 0, "a rank gave {} of its {} terms of a sum", pushed_, own_.size());
  check(out.dtype() == DType::f32 && out.numel() == size_of(plan_.owned[own]), "{} elements of a sum do not go into {}{}", size_of(plan_.owned[own]), name_of(out.dtype()),
        to_string(out.shape()));
  out_ = out;
  completed_ = 0;
  joins_.clear();
  Tensor last;
  if (own_.size() > 0) {
    last = next();
    grow(plan_.terms, nodes_, {0, own_.begin + pushed_}, [&] { joins_.push_back(nodes_.size() - 1); });
  }
  if (ranks_.size() > 1 && !buffers_[0].sending.defined()) {
    const auto [sent, received] = exchanged(plan_, rounds_, own);
    for (Buffers& b : buffers_) b = {host_tensor(DType::f32, {sent}), host_tensor(DType::f32, {received})};
  }
  exchange_.start(rounds_.size(), ranks_.size() > 1);
  return last;
}

void TreeSum::complete(Range piece) {
  check(completed_ < plan_.pieces.size() && piece == plan_.pieces[completed_], "elements {} to {} of a sum are not the next to be complete", piece.begin, piece.end);
  for (const std::size_t i : joins_) add_(part_of(sums_[i - 1], piece), part_of(sums_[i], piece));
  exchange_.allow(of_pieces_[completed_++]);
}

/// Every rank's nodes of the round's elements go to the rank that owns them.
std::unique_ptr<Pending> TreeSum::begin_round(std::size_t number) {
  if (ranks_.size() == 1) return nullptr;
  const Round& round = rounds_[number];
  const auto own = static_cast<std::size_t>(ranks_.rank());
  const Buffers& b = buffers_[number % Rounds::under_way];
  std::vector<std::int64_t> send, receive;
  std::int64_t sent = 0, received = 0;
  float* to = b.sending.data<float>();
  for (std::size_t r = 0; r < round.parts.size(); ++r) {
    sent += send.emplace_back(std::ssize(nodes_) * round.parts[r].size());
    received += receive.emplace_back(std::ssize(all_nodes_[r]) * round.parts[own].size());
    for (std::size_t i = 0; i < nodes_.size(); ++i) to = std::copy_n(sums_[i].data<float>() + round.parts[r].begin, round.parts[r].size(), to);
  }
  return ranks_.begin_exchange(b.sending.slice(0, sent), send, b.receiving.slice(0, received), receive);
}

void TreeSum::land_round(std::size_t number, bool behind) {
  const Round& round = rounds_[number];
  const Range part = round.parts[static_cast<std::size_t>(ranks_.rank())];
  float* const to = out_.data<float>() + round.at;
  if (part.size() == 0) return;
  if (ranks_.size() == 1) {
    std::copy_n(sums_[0].data<float>() + part.begin, part.size(), to);
    return;
  }
  std::vector<Node> stack;
  std::vector<std::span<float>> sums;  // of the stack's nodes, and one more
  float* from = buffers_[number % Rounds::under_way].receiving.data<float>();
  const Add& plus = behind ? Add(add) : add_;
  for (const auto& of_rank : all_nodes_) {
    for (const Node node : of_rank) {
      sums.resize(stack.size());
      sums.emplace_back(from, static_cast<std::size_t>(part.size()));
      from += part.size();
      grow(plan_.terms, stack, node, [&] { plus(sums[stack.size() - 2], sums[stack.size() - 1]); });
    }
  }
  std::copy(sums[0].begin(), sums[0].end(), to);
}

void TreeSum::finish() {
  while (completed_ < plan_.pieces.size()) complete(plan_.pieces[completed_]);
  exchange_.finish();
  nodes_.clear();
  pushed_ = 0;
}

}  // namespace kvmesh
