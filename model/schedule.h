// Who is where: rows that wait, the mesh's places, who enters which, and what of the prompts goes through the model in a step. Every rank
// works it out for the whole mesh by the same rules, from the same rows and the same gathered tokens; no device is touched here. Time goes in
// rounds of sync_every steps: rows enter at a round's beginning, and within it each rank takes its steps by itself.
#pragma once

#include "model/row.h"
#include "runtime/noise.h"

#include <chrono>
#include <deque>
#include <functional>
#include <span>

namespace kvmesh {

/// A place in the cache of one rank, and the row in it.
struct Place {
  bool active = false;
  Row row;
  std::int64_t start = 0;       ///< absolute position of the first prompt token
  std::int64_t cached = 0;      ///< prompt tokens in the cache before this step
  std::int64_t fed = 0;         ///< prompt tokens that go through the model in this step
  std::int32_t fork_of = -1;    ///< the place whose prompt this one copies, but for the last token, once it is in the cache there
  std::int64_t entry = 0;       ///< counts the rows that entered before: prompts are prefilled in this order
  Completion completion;
  NoiseKey key;                 ///< rng row: the row's key before fold_in of t
  std::chrono::steady_clock::time_point entered;

  std::int64_t prompt() const { return std::ssize(*row.prompt); }
  bool decodes() const { return cached == prompt(); }
  bool draws() const { return active && cached + fed == prompt(); }  ///< this step's logits give it a token
};

class Schedule {
 public:
  using Next = std::function<std::optional<Row>()>;

  /// `size`: slots of the ring, where the cursor begins.
  Schedule(const GenerateOptions& options, int ranks, std::int64_t size);

  /// The cursor moves on, and rows from `next` (which returns nothing when there are no more, and is not asked again) enter free places. Returns how
  /// many rows are in flight; 0: all is done.
  std::int64_t begin_round(const Next& next);
  /// Whether the rank has rows.
  bool busy(int rank) const;
  /// The rank's prompts are fed, by prefill_chunk tokens at most. Returns the order of its places in the logits that its pass gives: prompts,
  /// then forks of prompts, then decoding rows, each by place.
  std::vector<std::size_t> begin_step(int rank);
  /// What was fed is cached. To be called before places become inactive.
  void end_step(int rank);

  std::int64_t steps_a_round() const { return options_.sync_every; }
  std::span<Place> places() { return places_; }
  std::span<Place> places_of(int rank);
  std::span<const Place> places_of(int rank) const { return const_cast<Schedule*>(this)->places_of(rank); }

  /// Nothing is in flight, and `next` has said that there is no more.
  bool finished() const;
  /// Changes with every entry so far: which row, with which prompt, into which place, at which cursor.
  std::uint64_t hash() const { return hash_; }

 private:
  using Entering = std::vector<std::vector<Row>>;  // [ranks]

  Entering take_shared(const Next& next, std::vector<std::int64_t> rows);
  Entering take_fixed(const Next& next, std::span<const std::int64_t> rows);
  void enter(std::size_t place, Row row);
  int rank_of(std::size_t place) const;
  std::int32_t sibling_of(std::size_t place) const;
  std::int64_t places_of_rank(std::size_t rank) const { return first_place_[rank + 1] - first_place_[rank]; }

  GenerateOptions options_;
  std::vector<Place> places_;              // of the whole mesh, in rank order
  std::vector<std::int64_t> first_place_;  // [ranks + 1]: rank r owns places [first_place_[r], first_place_[r + 1])
  std::vector<std::deque<Row>> waiting_;   // [ranks], with Shards::fixed
  bool exhausted_ = false;                 ///< `next` has said that there are no more
  std::int64_t entries_ = 0;               ///< rows that have entered
  std::int64_t end_;                       ///< the cursor that all rows' ends share: when a round begins, where every decoding row's next token goes
  std::uint64_t hash_ = 0;
};

}  // namespace kvmesh
