// Where training begins: what its bits depend on, which must be the same to go on; its folder; the newest saved step.
#pragma once

#include "launch/job/file.h"
#include "launch/job/job.h"
#include "model/train/data.h"
#include "model/train/train_checkpoint.h"
#include "model/train/trainer.h"

#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace kvmesh {

/// JSON: everything that a step's bits depend on.
std::string training_options(const TrainCommandOptions& options, const Job& job, const DataOptions& data, std::span<const std::filesystem::path> validation);

/// Keeps a second job off the folder, as long as it lives. For one rank.
std::unique_ptr<File> lock_output(const std::filesystem::path& output);

/// A line that a crash has torn is ended. For one rank.
std::unique_ptr<File> open_metrics(const std::filesystem::path& name, bool fresh);

/// The newest saved step as rank 0 finds it, on every rank: only that rank need see the folder. progress.options is what is asked for now; other ones in the
/// folder are an Error that names the first that differs. False if nothing is saved. Collective.
bool go_on(Communicator& ranks, Device& device, const TrainCommandOptions& options, const ModelConfig& config, const ParamLayout& layout, const Trainer& trainer, TrainProgress& progress);

}  // namespace kvmesh
