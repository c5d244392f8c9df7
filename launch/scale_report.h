// What kvmesh scale found, as Markdown, JSON and plots.
#pragma once

#include "launch/job/rows.h"
#include "launch/options.h"
#include "launch/scale_model.h"

#include <filesystem>
#include <string>
#include <vector>

namespace kvmesh {

/// One run of a Generator over the first `ranks` ranks.
struct ScaleRun {
  enum Kind { strong, weak, sweep } kind = strong;  ///< sweep: one rank, several numbers of rows, for the cost model
  int ranks = 1, on_host = 1;                       ///< on_host: the most on one host
  std::int64_t rows = 0;                            ///< in all
  double seconds = 0;                               ///< of the whole run
  double tokens = 0;                                ///< new ones
  double steps = 0;
  TimeSplit mean;                                   ///< of the ranks
  double jitter = 0;                                ///< standard deviation of a step's seconds (sweep)
};

struct ScaleResults {
  Json about;                                       ///< machine, model and options, for the report
  std::vector<ScaleRun> runs;
  std::vector<std::pair<int, double>> meetings;     ///< ranks → seconds of a small all_gather, median
  int hosts = 1;
};

/// Writes report.json, report.md, data files with gnuplot's script, and, where gnuplot can be started, the plots; an Error names what cannot be written. Returns a
/// sentence about plots that could not be drawn, or nothing.
std::string write_scale_report(const ScaleResults& results, const std::filesystem::path& folder);

}  // namespace kvmesh
