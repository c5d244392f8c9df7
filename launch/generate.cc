// kvmesh generate: a file of prompts in, a file of completions out.
#include "launch/commands.h"
#include "launch/job/agree.h"
#include "launch/job/checkup.h"
#include "launch/job/file.h"
#include "launch/job/generation.h"
#include "launch/job/job.h"
#include "launch/job/metrics.h"
#include "launch/job/output.h"
#include "launch/job/signals.h"
#include "launch/job/trace.h"
#include "runtime/say.h"

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
  if (!o.chat.file.empty()) paths["chat-template"] = o.chat.file.string();
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

void print_summary(const GenerateStats& s, std::int64_t errors, double seconds, const Job& job) {
  const auto rate = [](std::int64_t n, double t) { return t > 0 ? static_cast<double>(n) / t : 0.0; };
  double prefill = 0, decode = 0;  // of the rank with the most
  for (const TimeSplit& t : s.ranks) prefill = std::max(prefill, t.prefill), decode = std::max(decode, t.decode);
  say("kvmesh: {} rows{} in {:.2f} s on {} rank{} of {}; prefill {} tokens at {:.0f}/s, decode {} tokens at {:.0f}/s, all {:.0f} new tokens/s; first token after {:.0f} ms\n",
             s.rows, errors ? fmt::format(" and {} error rows", errors) : "", seconds, s.ranks.size(), s.ranks.size() == 1 ? "" : "s", job.device->describe(), s.prompt_tokens, rate(s.prompt_tokens, prefill), s.decode_tokens,
             rate(s.decode_tokens, decode), rate(s.new_tokens, seconds), s.rows ? 1e3 * s.first_token_seconds / static_cast<double>(s.rows) : 0.0);
}

}  // namespace

int generate_command(std::span<const std::string> args, ProcessGroup& group) {
  const bool first = group.rank() == 0;
  std::optional<GenerateCommandOptions> parsed = parse_generate_options(args, first);
  if (!parsed) return 0;
  const GenerateCommandOptions& o = *parsed;
  Job job(o.mesh, group);
  if (!check_up(*parsed, job, group)) return static_cast<int>(Fault::usage);
  if (o.generate.sync == Sync::logits) job.join_devices(group);
  Communicator& ranks = group.world();
  job.open_chat(o.chat, o.mesh.checkpoint, ranks);
  LineSource lines = open_lines(o, job, ranks);
  std::unique_ptr<Output> output;  // rank 0's
  bool complete = false;
  on_first_rank(ranks, [&] {
    const fs::path& file = o.mesh.output;
    check_distinct({{"prompts", o.mesh.prompts}, {"output", file}, {"metrics", o.metrics.file}, {"prometheus", o.metrics.prometheus}, {"trace", o.metrics.trace}});
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
    if (first) say("kvmesh: {} is complete\n", o.mesh.output.string());
    return 0;
  }

  Metrics metrics(o.metrics, group);
  const Gpt& gpt = job.load(o.mesh.checkpoint, group);
  const OrdinalSet done = share_done(ranks, output.get());
  RowQueue rows(
      std::move(lines), o, job, [&](std::int64_t ordinal) { return !done.contains(ordinal); },
      [&](std::int64_t ordinal, std::int64_t span, bool error, const std::string& line) { output->add(ordinal, span, error, line); }, first);
  const std::unique_ptr<Trace> trace = o.metrics.trace.empty() ? nullptr : std::make_unique<Trace>(o.metrics.trace, group.rank(), metrics.hosts()[static_cast<std::size_t>(group.rank())]);
  metrics.begin();
  const GenerateStats stats = [&] {
    Progress progress(first);
    return generate_rows(rows, gpt, job, ranks, o, [&](const GenerateStats& so_far) {
      if (output) output->commit();
      metrics.update(so_far, rows.errors());
      progress.show(figures_of(so_far, rows));
      return !stop_requested();
    }, trace ? trace->sink() : TimeSink());
  }();

  const double looped = metrics.wall_seconds();
  if (!stats.stopped) finish(ranks, output.get());
  const std::int64_t errors = largest(ranks, rows.errors() + (output ? output->errors_before() : 0));  // rank 0's; when it speaks, all have come here
  if (first) print_summary(stats, errors, metrics.wall_seconds(), job);
  metrics.end(stats, errors, metrics.wall_seconds() - looped);
  if (first && stats.stopped) say("kvmesh: stopped by a signal; the same command goes on\n");
  return stats.stopped ? exit_stopped : errors ? exit_error_rows : 0;
}

}  // namespace kvmesh
