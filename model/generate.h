// Generating: rows wait, take a place in the cache, are prefilled (a long prompt in chunks, between the decode steps of the others), decode
// step by step, stop, and give their place to the next. All ranks run this loop in step. What is decided from tokens (who stops, who enters
// which place) every rank decides for the whole mesh from the gathered tokens, by the same rules; only the arithmetic of the own places is
// done here.
#pragma once

#include "comm/communicator.h"
#include "model/gpt.h"
#include "model/padding.h"
#include "model/tokenizer.h"

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace kvmesh {

enum class Sync { tokens, logits };  ///< what the ranks gather each step
enum class Rng { row, jax };         ///< contract, section 5

struct GenerateOptions {
  std::int64_t batch_size = 32;  ///< places on the whole mesh
  std::uint32_t seed = 0;
  Rng rng = Rng::row;
  Sync sync = Sync::tokens;
  Pad pad = Pad::power_of_two;
  std::int64_t samples = 1;
  std::int32_t logprobs = -1;    ///< -1: none; else how many best tokens come with each token's own log-probability
  bool static_batches = false;   ///< the next rows enter only when all places are free, and prompts are prefilled whole
  std::int64_t prefill_chunk = 512;  ///< prompt tokens that a rank prefills in one step at most; whole prompts with Rng::jax
};

/// One completion to be made. Rows of the same index are samples of one prompt.
struct Row {
  std::int64_t index = 0;   ///< input row
  std::int64_t sample = 0;
  std::shared_ptr<const std::vector<std::int32_t>> prompt;  // 1 … seqlen-1 ids
  std::int64_t max_new_tokens = 0;                          // ≥ 1
  float temperature = 0, top_p = 1, min_p = 0;
  std::int32_t top_k = 0;
  std::optional<std::uint32_t> seed;                        ///< the row's own
  std::vector<std::string> stop;
  std::vector<std::int32_t> stop_tokens;
};

enum class Finish : std::int32_t { none, stop, length, context };

struct Completion {
  std::vector<std::int32_t> tokens;
  std::string bytes;                    ///< decoded, up to a stop token or stop string; empty without a tokenizer
  Finish finish = Finish::none;
  std::vector<float> logprobs;          // [tokens] with GenerateOptions::logprobs ≥ 0
  std::vector<std::int32_t> top_ids;    // [tokens · N]
  std::vector<float> top_logprobs;      // [tokens · N]
};

struct GenerateStats {
  std::int64_t rows = 0, prompt_tokens = 0, new_tokens = 0, steps = 0;
  std::int64_t decode_tokens = 0;        ///< new tokens that came from decode steps, not from prefill
  double prefill_seconds = 0;            ///< this rank's time in prompts' forward passes
  double decode_seconds = 0;             ///< … in decode's forward passes
  double sample_seconds = 0, sync_seconds = 0;
  double first_token_seconds = 0;        ///< sum over rows, from entering a place to having the first token
};

class Generator {
 public:
  /// Borrows all of them. tokenizer may be null: then there are no stop strings. `device_ranks` is between the memories in which the logits lie, for
  /// Sync::logits; null: that is the host's, and `ranks` does it.
  Generator(const Gpt& gpt, const Tokenizer* tokenizer, Communicator& ranks, GenerateOptions options, Communicator* device_ranks = nullptr);

  /// Pulls rows from `next` (nothing: there are no more; not asked again) and hands every finished one to `done`, on every rank the
  /// same rows in the same order. Collective. A difference between ranks in --sync logits is an Error(Fault::rank).
  /// `proceed` is asked on every rank before each step and must give all ranks the same answer; false leaves the loop with rows unfinished.
  GenerateStats run(const std::function<std::optional<Row>()>& next, const std::function<void(const Row&, Completion&&)>& done,
                    const std::function<bool()>& proceed);

 private:
  struct Place {
    bool active = false;
    Row row;
    std::int64_t start = 0;   ///< absolute position of the first prompt token
    std::int64_t cached = 0;  ///< prompt tokens in the cache before this step
    std::int64_t fed = 0;     ///< prompt tokens that go through the model in this step
    std::int32_t fork_of = -1;    ///< the place whose prompt this one copies, but for the last token, once it is in the cache there
    std::int64_t entry = 0;   ///< counts the rows that entered before: prompts are prefilled in this order
    Completion completion;
    NoiseKey key;             ///< rng row: the row's key before fold_in of t
    std::chrono::steady_clock::time_point entered;

    std::int64_t prompt() const { return std::ssize(*row.prompt); }
    bool decodes() const { return cached == prompt(); }
    bool draws() const { return active && cached + fed == prompt(); }  ///< this step's logits give it a token
  };

  bool step(const std::function<std::optional<Row>()>& next, const std::function<void(const Row&, Completion&&)>& done);
  void admit(const std::function<std::optional<Row>()>& next);
  void enter(std::size_t place, Row row);
  void feed(int rank);
  int rank_of(std::size_t place) const;
  std::span<Place> places_of(int rank);
  std::int32_t sibling_of(std::size_t place) const;
  std::vector<std::size_t> pass_order(int rank) const;
  void forward(const Tensor& logits);
  Tensor draw(std::span<const std::size_t> places, const Tensor& logits);
  Finish finish_with(const Place& place, std::int32_t token) const;
  Tensor synchronize(const Tensor& logits, std::span<const std::vector<std::size_t>> orders);
  void accept(Place& place, const std::int32_t* record, const std::function<void(const Row&, Completion&&)>& done);

  const Gpt& gpt_;
  const Tokenizer* tokenizer_;
  Communicator& ranks_;
  Communicator& logits_ranks_;
  GenerateOptions options_;
  KvCache cache_;                  // this rank's places
  Gpt::Workspace workspace_;
  Tensor logits_;                  // f32 [own places, V]
  std::vector<Place> places_;      // of the whole mesh, in rank order
  std::vector<std::int64_t> first_place_;  // [ranks + 1]: rank r owns places [first_place_[r], first_place_[r + 1])
  std::vector<Row> waiting_;
  bool exhausted_ = false;         ///< `next` has said that there are no more
  std::int64_t entries_ = 0;       ///< rows that have entered
  std::int64_t end_;               ///< the cursor that all rows' ends share; after a step, every row's newest cached token is at end_ - 1
  NoiseKey jax_key_, jax_step_key_;
  GenerateStats stats_;
};

}  // namespace kvmesh
