// From input lines to rows in flight to output lines: what generate and verify share.
#pragma once

#include "launch/job/job.h"
#include "launch/job/line_source.h"
#include "launch/job/progress.h"
#include "launch/job/rows.h"

#include <functional>
#include <optional>
#include <unordered_map>
#include <utility>

namespace kvmesh {

/// Those options of generate that are its own and that its output depends on.
Json choices_of(const GenerateCommandOptions& options);

/// Everything that the output's bytes depend on. Batch size, mesh, sync, padding and threads are not among it. Reads checkpoint and
/// prompts once; for one rank.
Json identity_of(const GenerateCommandOptions& options, const Job& job);

/// The prompts, after it was checked that the options fit the checkpoint. Collective.
LineSource open_lines(const GenerateCommandOptions& options, const Job& job, Communicator& ranks);

/// The job's rows: read, checked, expanded into samples, without those that are not wanted; and the lines that are made of them. The same on every rank.
class RowQueue {
 public:
  using Wanted = std::function<bool(std::int64_t ordinal)>;  ///< ordinal: index · samples + sample
  using Emit = std::function<void(std::int64_t ordinal, std::int64_t span, bool error, const std::string& line)>;  ///< as Output::add

  /// Borrows options and job. `emits`: whether this rank makes lines.
  RowQueue(LineSource lines, const GenerateCommandOptions& options, const Job& job, Wanted wanted, Emit emit, bool emits);

  std::optional<Row> next();
  void finished(const Row& row, const Completion& completion);

  std::int64_t errors() const { return errors_; }  ///< rows that could not be served
  std::int64_t count() const { return count_; }    ///< input rows that have been read
  std::int64_t total() const;                ///< completions to be made; until all rows have been read, what is left is guessed from the file's size; -1: unknown
  bool total_is_known() const { return exhausted_; }

 private:
  bool wants_any(std::int64_t index) const;
  void check_jax(const Row& row) const;

  LineSource lines_;
  const GenerateCommandOptions& options_;
  RowContext context_;
  Wanted wanted_;
  Emit emit_;
  bool emits_;
  std::int64_t errors_ = 0, count_ = 0, entered_ = 0;
  bool exhausted_ = false;
  Row row_;
  std::int64_t sample_ = std::int64_t{1} << 62;  // of row_, the next; none yet
  std::unordered_map<std::int64_t, std::pair<RowText, int>> texts_;  // of rows in flight, with how many samples are
};

/// What is shown of a job that completes them.
Progress::Figures figures_of(const GenerateStats& stats, const RowQueue& rows);

/// Completes the queue's rows; `proceed` and `sink` as for Generator. Collective.
GenerateStats generate_rows(RowQueue& rows, const Gpt& gpt, const Job& job, Communicator& ranks, const GenerateCommandOptions& options,
                            const std::function<bool(const GenerateStats&)>& proceed, TimeSink sink = {});

}  // namespace kvmesh
