// Sums of long vectors that the ranks of a job have between them: every rank gets the elements that it owns. The sum of what is complete already travels
// while the rest is computed: a rank's last vector is completed piece by piece.
#pragma once

#include "comm/communicator.h"
#include "comm/sharding.h"

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace kvmesh {

/// The same on all ranks.
struct SumPlan {
  std::int64_t terms = 1, size = 0;        ///< so many vectors of so many elements; rank r of n gives split(terms, n, r) of them
  std::vector<Range> pieces;               ///< of the vector, in the order in which they are completed; what lies in none is not summed
  std::vector<std::vector<Range>> owned;   ///< [rank]: ascending; a piece has elements of one of a rank's ranges at most
};
/// An Error that says what cannot be.
void check_plan(const SumPlan& plan, int ranks);

/// A rank's part of a piece, and where it lies among all that the rank owns.
struct OwnedPart {
  Range part;
  std::int64_t at = 0;
};
OwnedPart owned_part(const SumPlan& plan, std::size_t rank, Range piece);

class VectorSum {
 public:
  /// left[j] = left[j] + right[j]
  using Add = std::function<void(std::span<float> left, std::span<const float> right)>;
  static void add(std::span<float> left, std::span<const float> right);

  virtual ~VectorSum() = default;
  virtual Range own_terms() const = 0;
  /// [size], float32, uninitialized: where this rank's next term is to be written, but for the last. The same memory until push().
  virtual Tensor next() = 0;
  /// The term is complete.
  virtual void push() = 0;

  /// Collective, after this rank's last push(): where the last term is to be written (not defined where the rank has no term). Until finish() this rank must
  /// not communicate. `out` gets what it owns of the sum, one range after another.
  virtual Tensor begin(const Tensor& out) = 0;
  /// The next piece of the last term is complete.
  virtual void complete(Range piece) = 0;
  /// The pieces that are left are complete as well. Collective: returns when `out` is complete, and the next sum can begin.
  virtual void finish() = 0;
};

}  // namespace kvmesh
