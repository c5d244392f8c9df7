// What a person sees of training: lines on standard error, and a JSON line a step.
#pragma once

#include "launch/job/file.h"
#include "launch/job/train_samples.h"
#include "model/train/trainer.h"

#include <chrono>
#include <optional>
#include <string>

namespace kvmesh {

class TrainReport {
 public:
  /// `speaks`: whether this rank shows anything. `done` of `steps` steps were taken before. `peak`: operations a second that all devices can do. `metrics` may be null.
  TrainReport(bool speaks, std::int64_t steps, std::int64_t done, double peak, const File* metrics);

  struct Figures {
    std::int64_t number = 0;  ///< of the step, from 1
    Trainer::Step step;
    double seconds = 0;       ///< of the step itself, without waiting for data, validation and saving
    double flops_per_token = 0;
    std::optional<double> validation;  ///< loss
    StepTimes times;                   ///< since the beginning
    std::vector<TrainSample> samples;
    bool last = false;
  };
  void begin(const std::string& text);
  void step(const Figures& figures);
  void end(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;
  bool speaks_, terminal_;
  std::int64_t steps_, done_;
  double peak_;
  const File* metrics_;
  StepTimes times_;  // at the last line of metrics
  Clock::time_point begun_, shown_;
};

}  // namespace kvmesh
