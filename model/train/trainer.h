// Steps of data-parallel training: gradients of this rank's micro-batches, one sum over all ranks in the order of a fixed tree (those of
// the last layers while the first ones are computed), each rank's share of the update, and the new parameters back on every rank. Everything that a step gives is the same on all ranks, and
// the same bits for any number of them (but for library_sum).
#pragma once

#include "comm/communicator.h"
#include "comm/vector_sum.h"
#include "model/train/backprop.h"
#include "model/train/data.h"
#include "model/train/optimizer.h"

#include <memory>
#include <span>

namespace kvmesh {

/// A loss, a gradient or a weight that is not finite: thrown on all ranks alike.
class NotFinite : public Error {
 public:
  explicit NotFinite(const std::string& message) : Error(Fault::rank, message) {}
};

struct TrainerOptions {
  OptimizerOptions optimizer;
  BatchShape batch;        ///< of this rank
  bool recompute = false;  ///< Backprop's
  bool library_sum = false;  ///< gradients by LibrarySum, not TreeSum
};

/// Of gradients: a piece a matrix, in the order in which Backprop completes them.
SumPlan gradient_plan(const ParamLayout& layout, const BatchShape& batch, Owners owners);

/// A rank's seconds since they were last asked for; the parts add up to what the steps took.
struct StepTimes {
  double gradients = 0, exchange = 0, update = 0, gather = 0, packing = 0;
};

class Trainer {
 public:
  /// device, ranks and layout outlive it.
  Trainer(const ModelConfig& config, DType dtype, Device& device, Communicator& ranks, const ParamLayout& layout, const TrainerOptions& options);

  /// All parameters, f32 [layout.size], in the host's memory: the same on every rank. After changing them: parameters_changed().
  const Tensor& parameters() const { return host_vector_; }
  void parameters_changed();
  const Optimizer& optimizer() const { return optimizer_; }
  Gpt gpt() const { return backprop_.gpt(); }

  struct Step {
    double loss = 0;           ///< nats a token, of the whole batch, before the update
    double norm = 0;           ///< of the whole gradient, before it is clipped
    double lr = 0;
    std::int64_t tokens = 0;   ///< that have a target
  };
  /// Step number `step` (0, 1, …) with this rank's micro-batches. Collective. Throws NotFinite, which names the step and a tensor.
  Step step(std::int64_t step, std::span<const TrainBatch> batches);

  /// Mean loss over all rows. Collective. Throws NotFinite.
  double evaluate(const AllRows& rows);

  /// Throws NotFinite, which names `what` and the matrix, unless all parameters are finite.
  void check_finite(const std::string& what) const;
  /// The same of the ranks' own elements of a vector, f32 [own elements] in the device's memory. Collective.
  void check_own_finite(const Tensor& own, const std::string& what) const;

  const StepTimes& times() const { return times_; }

 private:
  /// All ranks' square sums (Optimizer) of a vector. Collective.
  Tensor gathered_squares(const Tensor& own) const;

  ModelConfig config_;
  Device& device_;
  TrainOps& ops_;
  Communicator& ranks_;
  const ParamLayout& layout_;
  TrainerOptions options_;
  Tensor host_vector_, vector_;  // parameters: where ranks exchange and files are read, and where the device works; perhaps the same
  Backprop backprop_;
  Optimizer optimizer_;
  Tensor host_own_gradient_, own_gradient_;  // f32 [own elements], likewise
  std::unique_ptr<VectorSum> sum_;
  StepTimes times_;
};

}  // namespace kvmesh
