// What kvmesh scale measured, and the cost model that fits it.
#pragma once

#include "launch/job/rows.h"
#include "launch/scale_model.h"
#include "model/generate.h"

#include <string>
#include <utility>
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

/// An all_gather of `bytes` a rank, as a round ends with one.
struct Meeting {
  int ranks = 0;
  double bytes = 0, seconds = 0;  ///< seconds: the median
};

struct ScaleResults {
  Json about;                                       ///< machine, model and options, for the report
  std::vector<ScaleRun> runs;
  std::vector<Meeting> meetings;
  int hosts = 1;
};

/// The repeats of one kind of run, ranks and rows.
struct ScalePoint {
  ScaleRun::Kind kind = ScaleRun::strong;
  int ranks = 1, on_host = 1;
  std::int64_t rows = 0;
  Estimate seconds, tokens_per_s, speedup, efficiency;
  double prefill = 0, step = 0;  ///< means of seconds: all prompts, a step with its sampling
  double steps = 0, jitter = 0;
  std::vector<std::pair<const char*, double>> split;  ///< of a rank's time
  CostModel::Parts predicted;
  bool held_out = false;
};
std::vector<ScalePoint> points_of(const std::vector<ScaleRun>& runs);

/// Fits on one rank's sweep without its middle number of rows, on the meetings, and, for ranks that share a host, on weak runs: without the most ranks, if there are others.
/// Sets `predicted` and `held_out` of the points.
CostModel fit(std::vector<ScalePoint>& points, const std::vector<Meeting>& meetings);

/// What the model says of more ranks, and between what the middle 95 % of the models lie that are fitted to the repeats drawn anew, as many of each point, with replacement
/// (Efron's bootstrap; a point with few repeats tells too little of its own spread).
struct Extrapolated {
  int ranks = 1;
  std::int64_t rows_a_rank = 0, rows = 0;  ///< of the weak run; of the strong run, in all
  CostModel::Parts weak, strong;
  double weak_efficiency = 1, strong_efficiency = 1;
  Interval weak_interval, strong_interval;  ///< of the efficiencies
};
std::vector<Extrapolated> extrapolate(const ScaleResults& results, int largest);

}  // namespace kvmesh
