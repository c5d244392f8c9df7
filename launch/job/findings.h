// What the facts of all ranks say is wrong.
#pragma once

#include "launch/job/facts.h"

#include <span>
#include <string>
#include <vector>

namespace kvmesh {

enum class Severity {
  note,     ///< may be meant so; generate does not mention it
  warning,  ///< the job would be slow, or in danger
  error,    ///< the job would fail, or its output could not be relied on
};

struct Finding {
  Severity severity;
  std::string text;  ///< one line: what, which ranks and hosts, and what to do
};

/// The worst first. `ranks` by rank. A function of the facts alone.
std::vector<Finding> findings(std::span<const Facts> ranks);

/// "1.5 GB"
std::string size_text(std::int64_t bytes);

}  // namespace kvmesh
