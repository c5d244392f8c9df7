// The program that people start: kvmesh COMMAND [options], alone or under mpirun or srun.
#include "launch/commands.h"
#include "launch/job/agree.h"
#include "launch/job/signals.h"
#include "launch/options.h"
#include "runtime/say.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

namespace {

using namespace kvmesh;

constexpr const char* usage =
    "Usage: kvmesh COMMAND [options]        (kvmesh COMMAND --help lists the options)\n"
    "  generate   complete a file of prompts, on all ranks: mpirun -np N kvmesh generate …\n"
    "  train      train a model on token shards, on all ranks\n"
    "  doctor     what is wrong with a job, before it starts: generate's options behind the same mpirun or srun\n"
    "  score      log-likelihoods of given completions, on all ranks\n"
    "  verify     compute rows of a finished output again, on all ranks, and compare\n"
    "  progress   how far a job is, and what it has finished\n"
    "  tokenize   text to token ids and back\n"
    "  inspect    what is in a checkpoint folder\n"
    "  import     an Orbax or nanochat checkpoint to a checkpoint folder\n"
    "  export     a checkpoint folder to an Orbax or Hugging Face one\n"
    "  bench      how fast prefill and decode are, beside what the machine can do\n"
    "  scale      runs on 1 to all ranks, and a report on how that scales\n"
    "  --version  what was compiled in\n";

// Standard streams that are closed stay so to whoever reads or writes them, but no file or socket that is opened later takes their
// place, where messages would go into it.
void occupy_closed_streams() {
  for (int fd = 0; fd < 3; ++fd) {
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY);  // the lowest free one
  }
}

// Runs `body`; what it throws, as an Error.
template <typename Body>
std::optional<Error> guarded(const Body& body) {
  try {
    body();
    return std::nullopt;
  } catch (const std::exception& e) {
    return error_of(e);
  }
}

// mpirun or srun has started this process as another rank than the first.
bool is_another_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"}) {
    if (const char* rank = std::getenv(name); rank && std::string_view(rank) != "0") return true;
  }
  return false;
}

// On one rank, without MPI.
template <typename Command>
int run_alone(const Command& command) {
  if (is_another_rank()) return 0;
  int code = 0;
  const auto failure = guarded([&] {
    code = command();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) fail(Fault::io, "standard output: {}", std::strerror(errno));
  });
  if (failure) {
    say("kvmesh: {}\n", failure->what());
    return static_cast<int>(failure->fault());
  }
  return code;
}

// On every rank, so that under mpirun it is said once.
int unknown_command(std::span<const std::string> words, ProcessGroup&) {
  fail(Fault::usage, "{} (kvmesh --help lists them)", words.empty() ? "no command" : "unknown command '" + words[0] + "'");
}

// srun has started several processes and given them no way to find each other. Open MPI would end each of them with a page of its own.
bool lacks_pmix() {
  const char* const tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  return tasks && std::atoi(tasks) > 1 && !std::getenv("OMPI_COMM_WORLD_RANK") && !std::getenv("PMIX_RANK") && !std::getenv("PMI_RANK");
}

int run_on_mesh(int (*command)(std::span<const std::string>, ProcessGroup&), std::span<const std::string> args, int argc, char** argv) {
  if (lacks_pmix()) {
    const char* const rank = std::getenv("SLURM_PROCID");
    if (rank && std::string_view(rank) == "0") {
      say("kvmesh: srun has started {} tasks, and each would think it is alone: start them with srun --mpi=pmix\n", std::getenv("SLURM_STEP_NUM_TASKS"));
    } else {
      std::this_thread::sleep_for(std::chrono::seconds(1));  // --kill-on-bad-exit would end the one that tells it
    }
    return static_cast<int>(Fault::usage);
  }
  ProcessGroup group(argc, argv, std::chrono::seconds(60));
  int code = 0;
  const auto failure = guarded([&] { code = command(args, group); });
  if (!failure) return code;
  // A fault that all ranks have met alike (a wrong option, say) is told once and ends the job in order. Else this rank tells it and
  // ends the others, which may still be computing or waiting for it; the delay leaves the telling to the lowest rank at fault.
  if (group.all_arrive(std::chrono::seconds(2))) {
    if (group.rank() == 0) say("kvmesh: {}\n", failure->what());
    return static_cast<int>(failure->fault());
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(100) * group.rank());
  say("kvmesh: [rank {}] {}\n", group.rank(), failure->what());
  group.abort(static_cast<int>(failure->fault()));
}

}  // namespace

int main(int argc, char** argv) {
  occupy_closed_streams();
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error of writing, as a full disk is
  std::signal(SIGXFSZ, SIG_IGN);  // and so is a file size limit
  const std::vector<std::string> words(argv + 1, argv + argc);
  const std::string command = words.empty() ? "" : words[0];
  const std::span<const std::string> args = std::span(words).subspan(words.empty() ? 0 : 1);
  if (command == "generate" || command == "train") {
    catch_stop_signals();  // before MPI starts, which takes a while: a job that is preempted then ends in order as well
    return run_on_mesh(command == "train" ? train_command : generate_command, args, argc, argv);
  }
  if (command == "score") return run_on_mesh(score_command, args, argc, argv);
  if (command == "doctor") return run_on_mesh(doctor_command, args, argc, argv);
  if (command == "verify") return run_on_mesh(verify_command, args, argc, argv);
  if (command == "bench") return run_on_mesh(bench_command, args, argc, argv);
  if (command == "scale") return run_on_mesh(scale_command, args, argc, argv);
  if (command == "inspect" && inspect_quantizes(args)) return run_on_mesh(drift_command, args, argc, argv);
  if (command == "tokenize") return run_alone([&] { return tokenize_command(args); });
  if (command == "progress") return run_alone([&] { return progress_command(args); });
  if (command == "inspect") return run_alone([&] { return inspect_command(args); });
  if (command == "import" || command == "export") return run_alone([&] { return convert_command(words); });
  if (command == "--version") return run_alone(version_command);
  if (command == "--help" || command == "-h" || command == "help") return run_alone([] { return std::fputs(usage, stdout) < 0; });
  return run_on_mesh(unknown_command, words, argc, argv);
}
