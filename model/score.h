// Scoring: how probable given completions are.
#pragma once

#include "model/gpt.h"

#include <span>
#include <vector>

namespace kvmesh {

struct ScoreRow {
  std::span<const std::int32_t> prompt, completion;  ///< both not empty, together at most seqlen ids
};

struct Score {
  double log_likelihood = 0;  ///< sum of the completion's log-probabilities (natural logarithm)
  bool greedy = true;         ///< whether every token of it is the most probable one
};

/// Scores rows on one device, several short ones in a pass. A row's score does not depend on the others. Owns its own cache.
class Scorer {
 public:
  explicit Scorer(const Gpt& gpt);
  std::vector<Score> run(std::span<const ScoreRow> rows);

 private:
  static constexpr std::int32_t places = 16;         // rows in one pass, at most
  static constexpr std::int64_t pass_tokens = 256;   // bounds the logits' memory
  struct Pass;
  void flush(Pass& pass, std::vector<Score>& scores);

  const Gpt& gpt_;
  KvCache cache_;
  Gpt::Workspace workspace_;
  Tensor logits_;  // f32 [pass_tokens, V]
};

}  // namespace kvmesh
