// What `kvmesh COMMAND` can be. Each takes the words behind its name and returns the exit code (contract, section 4); what goes wrong
// is thrown as Error and printed by main.
#pragma once

#include "comm/process_group.h"

#include <span>
#include <string>

namespace kvmesh {

// On every rank of the job, together.
int generate_command(std::span<const std::string> args, ProcessGroup& group);
int score_command(std::span<const std::string> args, ProcessGroup& group);
int doctor_command(std::span<const std::string> args, ProcessGroup& group);
int verify_command(std::span<const std::string> args, ProcessGroup& group);
int bench_command(std::span<const std::string> args, ProcessGroup& group);
int scale_command(std::span<const std::string> args, ProcessGroup& group);
int drift_command(std::span<const std::string> args, ProcessGroup& group);  ///< inspect --quantize
int train_command(std::span<const std::string> args, ProcessGroup& group);

// In one process, without MPI.
int tokenize_command(std::span<const std::string> args);
int progress_command(std::span<const std::string> args);
int inspect_command(std::span<const std::string> args);   ///< without --quantize
int convert_command(std::span<const std::string> words);  ///< the first word is the command: import or export
int version_command();

}  // namespace kvmesh
