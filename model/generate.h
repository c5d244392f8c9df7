// Generating: rows wait, take a place in the cache, are prefilled (a long prompt in chunks, between the decode steps of the others), decode
// step by step, stop, and give their place to the next. Each rank takes a few steps with its own rows, then all meet. What is decided from
// tokens (who stops, who enters which place) every rank decides for the whole mesh from the gathered tokens, by the same rules; only the
// arithmetic of the own places is done here. A device with a queue does not wait for the host: the next step of the rows that decode is enqueued, its
// tokens taken where they are drawn, before this step's have come to the host. What a row drew that turns out to have stopped is dropped.
#pragma once

#include "comm/communicator.h"
#include "model/gpt.h"
#include "model/schedule.h"
#include "model/sentinel.h"
#include "model/tokenizer/tokenizer.h"

#include <chrono>
#include <functional>
#include <vector>

namespace kvmesh {

/// Where a rank's seconds in the loop go; the parts add up to the whole.
struct TimeSplit {
  double prefill = 0, decode = 0;  ///< in prompts' and decode's forward passes
  double sampling = 0;
  double collectives = 0;          ///< in collectives, for as long as the rank that came last
  double idle = 0;                 ///< in collectives, beyond that: waiting for ranks that had more to do
  double rows = 0;                 ///< in what run() was given: reading, checking and writing rows
  double host = 0;                 ///< the loop's own
};

/// Told of every stretch of a rank's time: to which part of TimeSplit it went, and from when to when. Idle counts as collectives here: who waited is known later.
using TimeSink = std::function<void(double TimeSplit::* part, std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to)>;

/// Of the whole mesh, the same on every rank but for first_token_seconds and the last step of `ranks`.
struct GenerateStats {
  std::int64_t rows = 0, prompt_tokens = 0, new_tokens = 0, steps = 0;
  std::int64_t decode_tokens = 0;        ///< new tokens that came from decode steps, not from prefill
  std::int64_t in_flight = 0;            ///< rows
  std::int64_t dropped_draws = 0;        ///< enqueued before it was known that the row had stopped
  double first_token_seconds = 0;        ///< sum over rows, from entering a place to having the first token
  bool stopped = false;                  ///< some rank did not want to proceed, and there was more to do
  std::vector<TimeSplit> ranks;
};

class Generator {
 public:
  /// Borrows all of them. tokenizer may be null: then there are no stop strings. `device_ranks` is between the devices' memories, for Sync::logits;
  /// null: logits meet in the hosts' memory, by `ranks`.
  Generator(const Gpt& gpt, const Tokenizer* tokenizer, Communicator& ranks, GenerateOptions options, Communicator* device_ranks = nullptr, TimeSink sink = {});

  /// Pulls rows from `next` (which returns nothing when there are no more, and is not asked again) and hands every finished one to `done`, on every
  /// rank the same rows in the same order. `proceed` is asked before each round (of GenerateOptions::sync_every steps) with how far things are; after the
  /// round in which any rank has said false, all leave the loop. Collective. A difference between ranks in what must be equal (weights, rows, tokens) is an Error(Fault::rank).
  GenerateStats run(const Schedule::Next& next, const std::function<void(const Row&, Completion&&)>& done, const std::function<bool(const GenerateStats&)>& proceed);

 private:
  using Clock = std::chrono::steady_clock;
  struct Beat;

  /// Runs of rows that go through the model together.
  struct Packed {
    std::vector<std::int32_t> tokens, wanted;
    std::vector<Segment> segments;
    void add(const Place& place, std::int64_t position, std::int32_t row, std::span<const std::int32_t> ids);
  };

  /// A step's draws, enqueued: row r is the one of places[r].
  struct Draws {
    std::vector<std::size_t> places;  ///< `nobody`: it is dropped
    Tensor memory;                    // i32 [most · words of a draw]: all tokens; then all log-probabilities' bits [1 + N]; then all N best ids
    std::int64_t most = 0;            ///< rows that there is room for
    Tensor tokens() const { return memory.slice(0, most); }
  };
  static constexpr std::size_t nobody = ~std::size_t{0};

  bool round(const std::function<void(const Row&, Completion&&)>& done, bool go);
  void step(std::vector<std::int32_t>& records);
  void step_everywhere(std::span<std::vector<std::int32_t>> records);
  std::vector<std::size_t> prefill(const Tensor& logits);
  std::vector<std::size_t> decode(const Tensor& logits, const Draws* before);
  void draw(std::span<const std::size_t> places, const Tensor& logits, Draws& draws, std::int64_t ahead);
  SampleRow how(const Place& place, std::int64_t count);
  void tell(const Draws& draws, const Tensor& drawn, std::span<const std::size_t> order, std::int32_t* record);
  bool goes_on(const Place& place) const;
  void drop_stopped();
  Finish finish_with(const Place& place, std::int32_t token) const;
  bool meet(std::span<std::vector<std::int32_t>> records, bool go);
  Beat beat(std::span<const std::vector<std::int32_t>> records, bool go);
  void listen(std::span<const Beat> beats);
  void accept(int rank, std::span<const std::size_t> order, const std::int32_t* records);
  void accept(int rank, Place& place, const std::int32_t* record);
  void lap(double TimeSplit::* part);

  Clock::time_point lap_ = Clock::now();  ///< up to when time has been accounted for
  TimeSplit since_beat_;                  ///< this rank's; collectives is all of its waiting
  TimeSink sink_;
  const Gpt& gpt_;
  const Tokenizer* tokenizer_;
  Communicator& ranks_;
  Communicator* device_ranks_;
  GenerateOptions options_;
  KvCache cache_;                  // this rank's places
  Gpt::Workspace workspace_;
  Tensor logits_;                  // f32 [own places, V], of the pass in progress
  Draws ahead_;                    // what has been enqueued of the next step
  std::vector<std::size_t> row_of_;  // [places of the mesh]: of the draws that are told
  Schedule schedule_;
  std::vector<std::vector<std::pair<Row, Completion>>> finished_;  // [ranks], in this round
  std::vector<std::int64_t> taken_;                                // [ranks], steps in this round
  WeightWatch weights_;
  std::int64_t next_look_ = 0;     ///< step at which the weights are hashed next
  std::uint64_t tokens_hash_ = 0;  ///< of everything that all ranks have drawn
  SplitKey jax_split_;               // Rng::jax, the newest; the next one splits `first`
  std::vector<NoiseKey> jax_keys_;   // of the rows' second, third, … draws
  std::int64_t dropped_ = 0;         // draws of this rank since its last beat
  GenerateStats stats_;
};

}  // namespace kvmesh
