// What is asked of a generation, and what comes of it.
#pragma once

#include "model/padding.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace kvmesh {

enum class Sync { tokens, logits };  ///< what the ranks gather each step
enum class Rng { row, jax };         ///< contract, section 5
enum class Shards {
  shared,  ///< a row goes to whichever rank has room
  fixed    ///< row `index` goes to rank index mod ranks, however much that rank has to do
};

struct GenerateOptions {
  std::int64_t batch_size = 32;  ///< places on the whole mesh
  std::uint32_t seed = 0;
  Rng rng = Rng::row;
  Sync sync = Sync::tokens;
  Pad pad = Pad::power_of_two;
  Shards shards = Shards::shared;
  std::int64_t samples = 1;
  std::int32_t logprobs = -1;    ///< -1: none; else how many best tokens come with each token's own log-probability
  bool static_batches = false;   ///< the next rows enter only when all places are free, and prompts are prefilled whole
  std::int64_t prefill_chunk = 512;  ///< prompt tokens that a rank prefills in one step at most; whole prompts with Rng::jax
  std::int64_t sync_every = 4;   ///< steps that a rank takes by itself between two meetings of the ranks; 1 with Rng::jax and Sync::logits, and on one rank
  std::int64_t sentinel = 16;    ///< steps between two looks at the weights; 0: never
  bool run_ahead = true;         ///< on a device with a queue: the next step is enqueued before this one's tokens have come to the host; not with Sync::logits on several ranks

  /// What a place's owner tells of its draw in a step, as int32 words: token, finish [, log-probability's bits, N best ids, N best log-probabilities' bits].
  std::size_t record_words() const { return logprobs < 0 ? 2 : 3 + 2 * static_cast<std::size_t>(logprobs); }
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

}  // namespace kvmesh
