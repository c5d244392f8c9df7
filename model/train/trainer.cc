#include "model/train/trainer.h"

#include "comm/library_sum.h"
#include "comm/tree_sum.h"

#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

namespace kvmesh {
namespace {

/// Every rank's (nats, tokens) pairs, by rank, added in that order.
LossSum sum_of(Communicator& ranks, std::span<const LossSum> own, std::span<const std::int64_t> counts) {
  std::int64_t all = 0;
  for (const std::int64_t n : counts) all += n;
  const Tensor mine = host_tensor(DType::f64, {std::ssize(own), 2}), everything = host_tensor(DType::f64, {all, 2});
  for (std::size_t i = 0; i < own.size(); ++i) {
    mine.data<double>()[2 * i] = own[i].nats;
    mine.data<double>()[2 * i + 1] = static_cast<double>(own[i].tokens);
  }
  ranks.all_gather_ragged(mine, counts, everything);
  LossSum sum;
  for (std::int64_t i = 0; i < all; ++i) {
    sum.nats += everything.data<double>()[2 * i];
    sum.tokens += static_cast<std::int64_t>(everything.data<double>()[2 * i + 1]);
  }
  return sum;
}

/// Every rank's stretches of the vector f32 on all ranks.
void gather_stretches(Communicator& ranks, const Owners& owners, const Tensor& vector) {
  for (std::size_t i = 0; i < owners[0].size(); ++i) {
    std::vector<std::int64_t> sizes;
    for (const std::vector<Range>& owner : owners) sizes.push_back(owner[i].size());
    const Range own = owners[static_cast<std::size_t>(ranks.rank())][i];
    ranks.all_gather_ragged(vector.slice(own.begin, own.end), sizes, vector.slice(owners.front()[i].begin, owners.back()[i].end));
  }
}

}  // namespace

SumPlan gradient_plan(const ParamLayout& layout, const BatchShape& batch, Owners owners) {
  SumPlan plan{.terms = batch.rows / batch.micro_rows, .size = layout.size, .pieces = {}, .owned = std::move(owners)};
  for (auto m = layout.matrices.rbegin(); m != layout.matrices.rend(); ++m) plan.pieces.push_back({m->offset, m->offset + m->size()});
  return plan;
}

Trainer::Trainer(const ModelConfig& config, DType dtype, Device& device, Communicator& ranks, const ParamLayout& layout, const TrainerOptions& options)
    : config_(config),
      device_(device),
      ops_(device.train_ops()),
      ranks_(ranks),
      layout_(layout),
      options_(options),
      host_vector_(host_tensor(DType::f32, {layout.size})),
      vector_(device.counterpart(host_vector_)),
      backprop_(config, dtype, device, layout, {.rows = options.batch.micro_rows, .recompute = options.recompute}),
      optimizer_(config, layout, device, dtype, options.optimizer, ranks.rank(), ranks.size()),
      host_own_gradient_(host_tensor(DType::f32, {size_of(optimizer_.own())})),
      own_gradient_(device.counterpart(host_own_gradient_)) {
  const auto add = [&ops = ops_](std::span<float> left, std::span<const float> right) {
    const auto view = [](const float* data, std::size_t n) { return Tensor(nullptr, const_cast<float*>(data), DType::f32, {static_cast<std::int64_t>(n)}); };
    ops.add_on_host(view(left.data(), left.size()), view(right.data(), right.size()));
  };
  SumPlan plan = gradient_plan(layout, options.batch, optimizer_.owners());
  if (options.library_sum) sum_ = std::make_unique<LibrarySum>(ranks, std::move(plan), add);
  else sum_ = std::make_unique<TreeSum>(ranks, std::move(plan), add);
}

void Trainer::parameters_changed() {
  device_.copy(host_vector_, vector_);
  backprop_.set_parameters(vector_);
}

Trainer::Step Trainer::step(std::int64_t number, std::span<const TrainBatch> batches) {
  auto last = std::chrono::steady_clock::now();
  const auto lap = [&](double StepTimes::* part) {
    const auto now = std::chrono::steady_clock::now();
    times_.*part += std::chrono::duration<double>(now - std::exchange(last, now)).count();
  };
  const std::int64_t leaves = options_.batch.rows / options_.batch.micro_rows, nominal = options_.batch.rows * config_.seqlen;
  check(std::ssize(batches) == options_.batch.leaves.size(), "step {}: {} micro-batches instead of {}", number, batches.size(), options_.batch.leaves.size());
  const float scaled = 1 / static_cast<float>(nominal);
  std::vector<LossSum> losses;
  for (const TrainBatch& batch : batches.first(batches.empty() ? 0 : batches.size() - 1)) {
    const Tensor term = sum_->next(), gradient = device_.counterpart(term);
    losses.push_back(backprop_.loss_and_gradient(batch, scaled, gradient));
    device_.copy(gradient, term);
    sum_->push();
  }
  const Tensor last_term = sum_->begin(host_own_gradient_), last_gradient = batches.empty() ? Tensor() : device_.counterpart(last_term);
  const auto complete = [&](const Matrix& m) {
    const Range piece{m.offset, m.offset + m.size()};
    device_.copy(last_gradient.slice(piece.begin, piece.end), last_term.slice(piece.begin, piece.end));
    sum_->complete(piece);
  };
  if (!batches.empty()) losses.push_back(backprop_.loss_and_gradient(batches.back(), scaled, last_gradient, complete));
  lap(&StepTimes::gradients);

  sum_->finish();
  device_.copy(host_own_gradient_, own_gradient_);
  std::vector<std::int64_t> counts;
  for (int r = 0; r < ranks_.size(); ++r) counts.push_back(split(leaves, ranks_.size(), r).size());
  const LossSum loss = sum_of(ranks_, losses, counts);

  const Tensor squares = gathered_squares(own_gradient_);
  lap(&StepTimes::exchange);

  const double scale = static_cast<double>(nominal) / static_cast<double>(loss.tokens);  // from a mean over all places to one over those with a target
  Step result{.loss = loss.nats / static_cast<double>(loss.tokens),
              .norm = std::sqrt(optimizer_.squared_norm(squares.span<double>())) * scale,
              .lr = scheduled_lr(options_.optimizer, number),
              .tokens = loss.tokens};
  if (!std::isfinite(result.loss) || !std::isfinite(result.norm)) {
    throw NotFinite(std::isfinite(result.loss) ? fmt::format("step {}: the gradient of {} is not finite (the loss is {:.4f})", number + 1,
                                                             optimizer_.matrix_of_square(squares.span<double>()), result.loss)
                                               : fmt::format("step {}: the loss is {}", number + 1, result.loss));
  }
  const double clip = options_.optimizer.clip;
  const double factor = clip > 0 && result.norm > clip ? scale * clip / result.norm : scale;
  optimizer_.step(number, own_gradient_, static_cast<float>(factor), vector_);
  lap(&StepTimes::update);

  for (const Range& own : optimizer_.own()) device_.copy(vector_.slice(own.begin, own.end), host_vector_.slice(own.begin, own.end));
  gather_stretches(ranks_, optimizer_.owners(), host_vector_);
  lap(&StepTimes::gather);
  parameters_changed();
  lap(&StepTimes::packing);
  return result;
}

Tensor Trainer::gathered_squares(const Tensor& own) const {
  const std::vector<std::int64_t> blocks = optimizer_.square_counts();
  const Tensor all = host_tensor(DType::f64, {std::accumulate(blocks.begin(), blocks.end(), std::int64_t{0})});
  ranks_.all_gather_ragged(optimizer_.square_sums(own), blocks, all);
  return all;
}

void Trainer::check_own_finite(const Tensor& own, const std::string& what) const {
  const Tensor squares = gathered_squares(own);
  const std::string matrix = optimizer_.matrix_of_square(squares.span<double>());
  if (!matrix.empty()) throw NotFinite(fmt::format("{} of {} is not finite", what, matrix));
}

void Trainer::check_finite(const std::string& what) const {
  for (const Matrix& m : layout_.matrices) {
    if (!std::isfinite(ops_.sum_squares(layout_.of(m, vector_)))) throw NotFinite(fmt::format("{} of {} is not finite", what, m.name));
  }
}

double Trainer::evaluate(const AllRows& rows) {
  std::vector<std::int64_t> counts;
  for (int r = 0; r < ranks_.size(); ++r) counts.push_back(split(rows.batches(), ranks_.size(), r).size());
  const Range mine = split(rows.batches(), ranks_.size(), ranks_.rank());
  std::vector<LossSum> losses;
  for (std::int64_t i = mine.begin; i < mine.end; ++i) losses.push_back(backprop_.loss(rows.batch(i)));
  const LossSum sum = sum_of(ranks_, losses, counts);
  const double loss = sum.nats / static_cast<double>(sum.tokens);
  if (!std::isfinite(loss)) throw NotFinite(fmt::format("the validation loss is {}", loss));
  return loss;
}

}  // namespace kvmesh
