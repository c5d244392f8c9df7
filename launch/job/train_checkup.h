// Whether there is memory enough to train.
#pragma once

#include "launch/job/job.h"
#include "model/train/trainer.h"

#include <cstdint>

namespace kvmesh {

/// The bytes that the rank with the most will need. Where a host has less than its ranks need together, or a device with memory of its own less than 10/9 of what a
/// rank needs of it (with --share-gpus: as if all of the host's ranks had the same), that is an Error on all ranks, which says what for, and which options need less. `samples`: texts that the model is to go on with. Collective.
std::int64_t check_train_memory(const Job& job, const ParamLayout& layout, const TrainerOptions& options, std::int64_t samples, ProcessGroup& group);

}  // namespace kvmesh
