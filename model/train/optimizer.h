// AdamW and Muon over the ranks of a job: every rank owns stretches of the parameter vector, with their optimizer state, and updates those.
// Groups, rates and formulas are the original program's, which are optax's; the arithmetic of a parameter does not depend on who owns it.
#pragma once

#include "comm/sharding.h"
#include "model/train/parameters.h"
#include "runtime/train_ops.h"

#include <functional>
#include <mutex>
#include <span>
#include <vector>

namespace kvmesh {

struct OptimizerOptions {
  bool muon = true;        ///< for the matrices of the blocks; else AdamW there too
  double lr = 0.02;        ///< peak, of the blocks' matrices
  double floor = 0.0002;   ///< where the warm-up begins and the cosine ends
  std::int64_t warmup = 0, steps = 1;  ///< the cosine ends `warmup` steps before the last, as the original's does
  double embed_lr = 0.2, head_lr = 0.004;  ///< constant; both for a width of 768, else times (d_emb / 768)^-½
  bool schedule_all = false;               ///< embedding and head follow the blocks' schedule, as a share of its peak
  double beta1 = 0.8, beta2 = 0.95, eps = 1e-10;
  double momentum = 0.95;
  int newton_schulz_steps = 5;
  double weight_decay = 0.01;  ///< of the blocks' matrices, times the learning rate
  DecayRule rule = DecayRule::cautious;
  double clip = 1;  ///< the gradient's norm, at most; 0: no limit
};

/// The blocks' learning rate of step 0, 1, …: optax's warmup_cosine_decay_schedule.
double scheduled_lr(const OptimizerOptions& options, std::int64_t step);

/// Which elements each of `ranks` ranks owns: [rank], a stretch of the embedding, one of the blocks and one of the head. So each of the three, whose gradients
/// are complete at different times, is exchanged between all ranks.
using Owners = std::vector<std::vector<Range>>;
Owners divide(const ParamLayout& layout, const OptimizerOptions& options, int ranks);

class Optimizer {
 public:
  /// This is `rank` of `ranks`. `products`: what Newton and Schulz's matrices are rounded to when they are multiplied. layout and device outlive it.
  Optimizer(const ModelConfig& config, const ParamLayout& layout, Device& device, DType products, const OptimizerOptions& options, int rank, int ranks);

  /// Bytes of a rank that owns `own`.
  static std::int64_t memory(const ParamLayout& layout, Device& device, DType products, const OptimizerOptions& options, std::span<const Range> own);

  /// Which elements each rank owns; each stretch in the order of the ranks, without gaps, about equal in work. Cuts go only between Muon's matrices.
  const Owners& owners() const { return owners_; }
  const std::vector<Range>& own() const { return owners_[static_cast<std::size_t>(rank_)]; }

  /// The state of own(), one stretch after another: momentum, and AdamW's second moment (zero where Muon rules), f32. In the device's memory, as all that step() works on.
  const Tensor& m() const { return m_; }
  const Tensor& v() const { return v_; }

  /// Sums of squares of own gradients, f64, one a block of the vector, and their number by rank.
  Tensor square_sums(const Tensor& gradient) const;  // in the host's memory
  std::vector<std::int64_t> square_counts() const;
  /// Of all ranks' square sums, one rank's after another's: the squared norm, which is their sum one by one in the order of the vector, and the first matrix with
  /// one that is not finite (empty: none).
  double squared_norm(std::span<const double> all) const;
  std::string matrix_of_square(std::span<const double> all) const;

  /// Step 0, 1, …: own gradient f32 [own elements] times `scale` moves own parameters (`vector` is all of them). The gradient is overwritten.
  void step(std::int64_t step, const Tensor& gradient, float scale, const Tensor& vector);

 private:
  /// Memory in which one block [height, width] at a time is made orthogonal.
  struct Workspace {
    Tensor gram, square, product;                       // f32 [height, height] twice, [height, width]
    Tensor transposed, rounded, packed, packed_turned;  // as they are multiplied
  };
  struct Sizes;
  static Sizes sizes_of(const ParamLayout& layout, const Device& device, DType products, const OptimizerOptions& options, std::span<const Range> own);
  void each_square(std::span<const double> all, const std::function<void(const Matrix&, double)>& f) const;
  Workspace workspace(const Sizes& sizes, bool small) const;
  void orthogonalize(const Tensor& x, const Workspace& w) const;
  void times_own_transpose(const Tensor& x, const Workspace& w, const Tensor& out) const;
  Weight pack(const Tensor& x, const Tensor& memory) const;
  Tensor rounded(const Tensor& x, const Workspace& w) const;

  const ParamLayout& layout_;
  Device& device_;
  TrainOps& ops_;
  DType products_;
  OptimizerOptions options_;
  double width_scale_;
  int rank_;
  Owners owners_;
  Tensor m_, v_;
  Tensor update_;                 // one matrix
  Workspace large_;               // for one block after another, with all threads
  std::vector<Workspace> small_;  // for blocks that go side by side, a thread each: those that are free
  std::mutex small_mutex_;
};

}  // namespace kvmesh
