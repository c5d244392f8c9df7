// The short check that generate makes by itself, and its parts that kvmesh doctor has in common with it.
#pragma once

#include "launch/job/findings.h"

#include <cstdio>
#include <span>
#include <vector>

namespace kvmesh {

/// What the options and the checkpoint's config ask of this rank.
void add_job(Facts& facts, const GenerateCommandOptions& options, const Job& job, const ProcessGroup& group);

/// The facts of all ranks, by rank. Collective.
std::vector<Facts> gather(const Facts& facts, Communicator& ranks);

/// Prints those that are `from` or worse, once for all processes, a line each. Whether there is no error among them; where there is, a rank that thinks it is alone and was
/// started as another than the first leaves the telling to that one, for a second.
bool tell(std::span<const Finding> findings, Severity from, const Facts& facts);

/// Looks around, without reading any file of the job's, and tells what is wrong; false: do not go on. Collective; milliseconds.
bool check_up(const GenerateCommandOptions& options, const Job& job, ProcessGroup& group);

}  // namespace kvmesh
