// What a person sees on standard error while a job runs: a bar on a terminal, a quiet line now and then elsewhere. Rank 0 draws.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace kvmesh {

/// For people, e.g. "2 h 05 min".
std::string duration_text(double seconds);

class Progress {
 public:
  /// `draws`: whether this rank shows anything.
  explicit Progress(bool draws);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  struct Figures {
    std::int64_t rows = 0, tokens = 0;  ///< so far
    std::int64_t in_flight = 0;         ///< rows
    std::int64_t total = -1;            ///< rows; < 0: no idea
    bool total_is_known = true;         ///< else it is a guess
  };
  /// Cheap; draws a few times a second at most.
  void show(const Figures& figures);

 private:
  bool draws_, terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point begun_, last_;
};

}  // namespace kvmesh
