#include "model/train/trainer.h"

#include "comm/sharding.h"

#include <chrono>
#include <cmath>
#include <cstring>
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

}  // namespace

Trainer::Trainer(const ModelConfig& config, DType dtype, Device& device, Communicator& ranks, const ParamLayout& layout, const TrainerOptions& options)
    : config_(config),
      ops_(device.train_ops()),
      ranks_(ranks),
      layout_(layout),
      options_(options),
      vector_(host_tensor(DType::f32, {layout.size})),
      backprop_(config, dtype, device, layout, {.rows = options.batch.micro_rows, .recompute = options.recompute}),
      optimizer_(config, layout, device, dtype, options.optimizer, ranks.rank(), ranks.size()),
      sum_(ranks, options.batch.rows / options.batch.micro_rows, layout.size,
           [&ops = device.train_ops()](std::span<float> left, std::span<const float> right) {
             const auto view = [](const float* data, std::size_t n) { return Tensor(nullptr, const_cast<float*>(data), DType::f32, {static_cast<std::int64_t>(n)}); };
             ops.add(view(left.data(), left.size()), view(right.data(), right.size()));
           }),
      own_gradient_(host_tensor(DType::f32, {optimizer_.own().size()})) {}

void Trainer::parameters_changed() { backprop_.set_parameters(vector_); }

Trainer::Step Trainer::step(std::int64_t number, std::span<const TrainBatch> batches) {
  auto last = std::chrono::steady_clock::now();
  const auto lap = [&](double StepTimes::* part) {
    const auto now = std::chrono::steady_clock::now();
    times_.*part += std::chrono::duration<double>(now - std::exchange(last, now)).count();
  };
  const std::int64_t leaves = options_.batch.rows / options_.batch.micro_rows, nominal = options_.batch.rows * config_.seqlen;
  check(std::ssize(batches) == options_.batch.leaves.size(), "step {}: {} micro-batches instead of {}", number, batches.size(), options_.batch.leaves.size());
  std::vector<LossSum> losses;
  for (const TrainBatch& batch : batches) {
    losses.push_back(backprop_.loss_and_gradient(batch, 1 / static_cast<float>(nominal), sum_.next()));
    sum_.push();
  }
  lap(&StepTimes::gradients);

  sum_.reduce_scatter(optimizer_.owners(), own_gradient_);
  std::vector<std::int64_t> counts;
  for (int r = 0; r < ranks_.size(); ++r) counts.push_back(split(leaves, ranks_.size(), r).size());
  const LossSum loss = sum_of(ranks_, losses, counts);

  // The norm: sums of squares of blocks of the vector, in their order.
  const std::vector<std::int64_t> blocks = optimizer_.square_counts();
  std::int64_t all = 0;
  for (const std::int64_t n : blocks) all += n;
  const Tensor squares = host_tensor(DType::f64, {all});
  ranks_.all_gather_ragged(optimizer_.square_sums(own_gradient_), blocks, squares);
  double sum = 0;
  for (const double x : squares.span<double>()) sum += x;
  lap(&StepTimes::exchange);

  const double scale = static_cast<double>(nominal) / static_cast<double>(loss.tokens);  // from a mean over all places to one over those with a target
  Step result{.loss = loss.nats / static_cast<double>(loss.tokens), .norm = std::sqrt(sum) * scale, .lr = scheduled_lr(options_.optimizer, number), .tokens = loss.tokens};
  if (!std::isfinite(result.loss) || !std::isfinite(result.norm)) {
    throw NotFinite(std::isfinite(result.loss) ? fmt::format("step {}: the gradient of {} is not finite (the loss is {:.4f})", number + 1,
                                                             optimizer_.matrix_of_square(squares.span<double>()), result.loss)
                                               : fmt::format("step {}: the loss is {}", number + 1, result.loss));
  }
  const double clip = options_.optimizer.clip;
  const double factor = clip > 0 && result.norm > clip ? scale * clip / result.norm : scale;
  optimizer_.step(number, own_gradient_, static_cast<float>(factor), vector_);
  lap(&StepTimes::update);

  std::vector<std::int64_t> sizes;
  for (const Range& owner : optimizer_.owners()) sizes.push_back(owner.size());
  ranks_.all_gather_ragged(vector_.slice(optimizer_.own().begin, optimizer_.own().end), sizes, vector_);
  lap(&StepTimes::gather);
  parameters_changed();
  lap(&StepTimes::packing);
  return result;
}

void Trainer::check_finite(const Tensor& vector, const std::string& what) const {
  for (const Matrix& m : layout_.matrices) {
    if (!std::isfinite(ops_.sum_squares(layout_.of(m, vector)))) throw NotFinite(fmt::format("{} of {} is not finite", what, m.name));
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
