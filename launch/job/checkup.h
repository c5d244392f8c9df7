// The short check that generate makes by itself, and its parts that kvmesh doctor has in common with it.
#pragma once

#include "launch/job/findings.h"

#include <cstdio>
#include <span>
#include <vector>

namespace kvmesh {

/// What the options and the checkpoint's config ask of this rank.
void add_job(Facts& facts, const GenerateCommandOptions& options, const Job& job, const ProcessGroup& group);

/// Turns --batch-size auto into a number: the rows for which the estimate of model/memory.h leaves a tenth of the memory free on every rank, at most 1024 a
/// rank. Where not one row a rank fits, that is an Error on the ranks that lack memory. On a device with memory of its own a given number that does not fit is an Error. Collective.
void settle_batch(GenerateCommandOptions& options, const Job& job, const Facts& facts, ProcessGroup& group);

/// The facts of all ranks, by rank. Collective.
std::vector<Facts> gather(const Facts& facts, Communicator& ranks);

/// Prints those that are `from` or worse, once for all processes, a line each. Whether there is no error among them; where there is, a rank that thinks it is alone and was
/// started as another than the first leaves the telling to that one, for a second.
bool tell(std::span<const Finding> findings, Severity from, const Facts& facts);

/// Looks around, without reading any file of the job's, settles the batch, and tells what is wrong; false: do not go on. Collective; milliseconds.
bool check_up(GenerateCommandOptions& options, const Job& job, ProcessGroup& group);

}  // namespace kvmesh
