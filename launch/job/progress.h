// What a person sees on standard error while a job runs: a bar on a terminal, a quiet line now and then elsewhere. Rank 0 draws.
#pragma once

#include <chrono>
#include <cstdint>

namespace kvmesh {

class Progress {
 public:
  /// `draws`: whether this rank shows anything.
  explicit Progress(bool draws);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Cheap; draws a few times a second at most. `total` < 0: not known yet.
  void show(std::int64_t rows, std::int64_t total, std::int64_t new_tokens);

 private:
  bool draws_, terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point begun_, last_;
};

}  // namespace kvmesh
