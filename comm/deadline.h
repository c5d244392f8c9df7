// How long a rank has waited for the others, and how it waits.
#pragma once

#include <algorithm>
#include <chrono>

namespace kvmesh {

using Seconds = std::chrono::duration<double>;

/// Adds up the time between looks at a monotonic clock. A single gap counts `longest_gap` at most: a process that was stopped
/// (SIGSTOP, a suspended job) has not waited meanwhile, so a whole job that is stopped and continued goes on, however long the
/// pause was, while a rank that waits for a stopped one looks often and counts all of it.
class WaitClock {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr Seconds longest_gap{0.1};

  explicit WaitClock(Clock::time_point now) : last_(now) {}
  Seconds look(Clock::time_point now) {
    waited_ += std::min<Seconds>(now - last_, longest_gap);
    last_ = now;
    return waited_;
  }

 private:
  Clock::time_point last_;
  Seconds waited_{0};
};

/// What the communicators of one process group share.
struct Deadline {
  Seconds seconds{60};
  bool passed = false;  ///< one of them gave up: MPI's end must not be waited for
};

}  // namespace kvmesh
