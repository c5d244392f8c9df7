// kvmesh generate: a file of prompts in, a file of completions out.
#include "launch/commands.h"
#include "launch/job/agree.h"
#include "launch/job/generation.h"
#include "launch/job/job.h"
#include "launch/job/output.h"
#include "launch/job/progress.h"
#include "launch/job/signals.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr int exit_error_rows = 2, exit_stopped = 75;

// Where a later command finds what the output was made of.
Json paths_of(const GenerateCommandOptions& o) {
  Json paths = {{"checkpoint", o.mesh.checkpoint.string()}};
  if (o.prompt.empty()) paths["prompts"] = o.mesh.prompts.string();
  return {{"paths", paths}};
}

// The finished set of an earlier start, from rank 0 to all.
OrdinalSet share_done(Communicator& ranks, const Output* output) {
  std::string bytes;
  if (output) bytes = output->done().pack();
  broadcast_bytes(ranks, bytes);
  return OrdinalSet::unpack(bytes);
}

// Part by part, so that nobody waits long for rank 0.
void finish(Communicator& ranks, Output* output) {
  for (std::int64_t last = 0; !last; last = from_first_rank(ranks, last)) {
    on_first_rank(ranks, [&] { last = output->finish(); });
  }
}

void print_summary(const GenerateStats& s, std::int64_t errors, double seconds) {
  const auto rate = [](std::int64_t n, double t) { return t > 0 ? static_cast<double>(n) / t : 0.0; };
  fmt::print(stderr, "kvmesh: {} rows{} in {:.2f} s; prefill {} tokens at {:.0f}/s, decode {} tokens at {:.0f}/s, all {:.0f} new tokens/s; first token after {:.0f} ms\n",
             s.rows, errors ? fmt::format(" and {} error rows", errors) : "", seconds, s.prompt_tokens, rate(s.prompt_tokens, s.prefill_seconds), s.decode_tokens,
             rate(s.decode_tokens, s.decode_seconds), rate(s.new_tokens, seconds), s.rows ? 1e3 * s.first_token_seconds / static_cast<double>(s.rows) : 0.0);
}

}  // namespace

int generate_command(std::span<const std::string> args, ProcessGroup& group) {
  const auto begun = std::chrono::steady_clock::now();
  const bool first = group.rank() == 0;
  const std::optional<GenerateCommandOptions> parsed = parse_generate_options(args, first);
  if (!parsed) return 0;
  const GenerateCommandOptions& o = *parsed;
  Job job(o.mesh, group);
  if (o.generate.sync == Sync::logits) job.join_devices(group);
  Communicator& ranks = group.world();
  LineSource lines = open_lines(o, job, ranks);
  std::unique_ptr<Output> output;  // rank 0's
  bool complete = false;
  on_first_rank(ranks, [&] {
    const fs::path& file = o.mesh.output;
    if (file.empty() || file == "-" || (fs::exists(file) && !fs::is_regular_file(file) && !fs::is_directory(file))) {
      std::FILE* const stream = file.empty() || file == "-" ? stdout : std::fopen(file.c_str(), "w");
      check(stream != nullptr, "--output {}: {}", file.string(), std::strerror(errno));
      output = make_stream_output(stream, stream == stdout ? "standard output" : file.string());
      return;
    }
    check(!o.prompt.empty() || fs::is_regular_file(o.mesh.prompts), "--prompts {}: is read again when the job goes on, and must be a file for --output {}",
          o.mesh.prompts.string(), file.string());
    const Json identity = identity_of(o, job);
    complete = !o.fresh && is_complete(file, identity);
    if (!complete) output = make_file_output(file, identity, paths_of(o), o.fresh);
  });
  if (from_first_rank(ranks, complete)) {
    if (first) fmt::print(stderr, "kvmesh: {} is complete\n", o.mesh.output.string());
    return 0;
  }

  const Gpt& gpt = job.load(o.mesh.checkpoint, group);
  const OrdinalSet done = share_done(ranks, output.get());
  RowQueue rows(
      std::move(lines), o, job, [&](std::int64_t ordinal) { return !done.contains(ordinal); },
      [&](std::int64_t ordinal, std::int64_t span, bool error, const std::string& line) { output->add(ordinal, span, error, line); }, first);
  Progress progress(first);
  bool stopped = false;
  const GenerateStats stats = generate_rows(rows, gpt, job, ranks, o, [&](std::int64_t finished, std::int64_t new_tokens) {
    stopped = largest(ranks, stop_requested()) != 0;
    if (output) output->commit();
    progress.show(finished, rows.total(), new_tokens);
    return !stopped;
  });

  if (!stopped) finish(ranks, output.get());
  const std::int64_t errors = largest(ranks, rows.errors() + (output ? output->errors_before() : 0));  // rank 0's; when it speaks, all have come here
  if (first) {
    print_summary(stats, errors, std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
    if (stopped) fmt::print(stderr, "kvmesh: stopped by a signal; the same command goes on\n");
  }
  return stopped ? exit_stopped : errors ? exit_error_rows : 0;
}

}  // namespace kvmesh
