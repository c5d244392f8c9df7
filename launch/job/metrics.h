// Where every rank's wall time goes: told in a file while the job runs, and in a table at its end. docs/running.md names the fields.
#pragma once

#include "comm/process_group.h"
#include "launch/options.h"

#include <memory>
#include <span>
#include <string>
#include <vector>

namespace kvmesh {

class File;

class Metrics {
 public:
  /// Opens the files, on rank 0, for appending; an Error on all ranks if that fails. Collective.
  Metrics(const MetricsOptions& options, ProcessGroup& group);
  ~Metrics();

  /// The time up to here was the start's. Collective.
  void begin();
  /// Writes, on rank 0, when it is time to. `errors`: rows that could not be served.
  void update(const GenerateStats& stats, std::int64_t errors);
  /// The loop has ended and what followed took `finish_seconds` on this rank. Writes a last time and prints, on rank 0, the table. Collective.
  void end(const GenerateStats& stats, std::int64_t errors, double finish_seconds);

  std::span<const std::string> hosts() const { return hosts_; }  ///< names, by rank

  /// Since the process began.
  double wall_seconds() const;

 private:
  void write(const GenerateStats& stats, std::int64_t errors, bool last);
  void print_table(const GenerateStats& stats) const;
  std::vector<double> from_all(double value);

  MetricsOptions options_;
  ProcessGroup& group_;
  std::unique_ptr<File> file_;      // rank 0's
  std::vector<std::string> hosts_;  // [ranks]
  std::vector<double> start_, finish_, wall_;  // [ranks], seconds; finish_ and wall_ at the end
  double written_ = 0;              // wall_seconds() at begin(), then of the last line
  std::int64_t tokens_written_ = 0;
};

}  // namespace kvmesh
