// Every stretch of a rank's time, in Chrome's trace format (about:tracing, Perfetto): what profilers of one process cannot line up over ranks.
#pragma once

#include "launch/job/file.h"
#include "model/generate.h"

#include <filesystem>
#include <memory>
#include <string>

namespace kvmesh {

class Trace {
 public:
  /// Replaces FILE.RANK.EXTENSION; a usage Error if it cannot. Times are the host's clock, so that the ranks' files fit together as well as the hosts' clocks do.
  Trace(const std::filesystem::path& file, int rank, const std::string& host);
  /// Writes what is left, as far as that is possible.
  ~Trace();
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  /// Borrows this.
  TimeSink sink();

 private:
  void flush();

  std::unique_ptr<File> file_;
  int rank_;
  double offset_us_;  // of Unix time to the steady clock
  std::string text_;
};

}  // namespace kvmesh
