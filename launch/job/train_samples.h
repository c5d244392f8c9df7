// How the model that is being trained goes on with given texts.
#pragma once

#include "launch/job/job.h"
#include "launch/job/rows.h"

#include <string>
#include <vector>

namespace kvmesh {

struct TrainSample {
  std::string prompt, completion;  ///< UTF-8
};

class TrainSamples {
 public:
  /// Borrows job and options. An Error names the text that cannot be gone on with. `end_of_text` ends a completion.
  TrainSamples(const TrainCommandOptions& options, const Job& job, std::int32_t end_of_text);

  /// Whether they are wanted after step `step`, which may be the last.
  bool due(std::int64_t step, bool last) const;
  /// One a text, in order, the same on every rank and for any number of them. The draws are the same each time, and those of kvmesh generate. Collective.
  std::vector<TrainSample> make(const Gpt& gpt, Communicator& ranks) const;

  std::int64_t count() const { return std::ssize(rows_); }

 private:
  const TrainCommandOptions& options_;
  const Job& job_;
  std::vector<Row> rows_;
};

}  // namespace kvmesh
