// kvmesh scale: the same work on 1, 2, … ranks of one job. Strong runs share a number of rows among the ranks, weak runs give each rank as many; one rank
// alone, with several numbers of rows, feeds the cost model (scale_model.h). Ranks that sit out a run sleep.
#include "launch/bench_parts.h"
#include "launch/commands.h"
#include "launch/job/agree.h"
#include "launch/job/job.h"
#include "launch/scale_report.h"
#include "launch/version.h"
#include "model/generate.h"
#include "runtime/say.h"

#include <fmt/ranges.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <random>

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) { return std::chrono::duration<double>(to - from).count(); }

ScaleRun run_once(const Gpt& gpt, Communicator& ranks, const ScaleOptions& o, ScaleRun run) {
  GenerateOptions options;
  options.batch_size = run.rows;
  Generator generator(gpt, nullptr, ranks, options);
  std::vector<std::int32_t> prompt(static_cast<std::size_t>(o.prompt_len));
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>((i * 7919 + 1) % static_cast<std::size_t>(gpt.config().vocab_size));
  const auto shared = std::make_shared<const std::vector<std::int32_t>>(std::move(prompt));
  std::int64_t entered = 0;
  std::vector<Clock::time_point> rounds;
  ranks.barrier();
  const auto from = Clock::now();
  const GenerateStats stats = generator.run(
      [&]() -> std::optional<Row> {
        if (entered == run.rows) return std::nullopt;
        Row row;
        row.index = entered++;
        row.prompt = shared;
        row.max_new_tokens = o.new_tokens;
        return row;
      },
      [](const Row&, Completion&&) {},
      [&](const GenerateStats&) {
        rounds.push_back(Clock::now());
        return true;
      });
  ranks.barrier();
  run.seconds = seconds_between(from, Clock::now());
  run.tokens = static_cast<double>(stats.new_tokens);
  run.steps = static_cast<double>(stats.steps);
  const auto n = static_cast<double>(stats.ranks.size());
  for (const TimeSplit& t : stats.ranks) {
    for (double TimeSplit::* part : {&TimeSplit::prefill, &TimeSplit::decode, &TimeSplit::sampling, &TimeSplit::collectives, &TimeSplit::idle, &TimeSplit::rows, &TimeSplit::host})
      run.mean.*part += t.*part / n;
  }
  // From one step to the next, as steps grow longer with their keys; without those that prefill, in chunks. (One rank alone: a round is a step.)
  double squares = 0, count = 0;
  const auto prefills = static_cast<std::size_t>(run.rows * o.prompt_len / options.prefill_chunk + 2);
  for (std::size_t i = prefills; i + 2 < rounds.size(); ++i, ++count) {
    squares += std::pow(seconds_between(rounds[i + 1], rounds[i + 2]) - seconds_between(rounds[i], rounds[i + 1]), 2);
  }
  run.jitter = count > 0 ? std::sqrt(squares / count / 2) : 0;
  return run;
}

/// As a round has it: an all_gather of `bytes` a rank.
Meeting meeting_of(Communicator& ranks, std::int64_t bytes) {
  const Tensor own = host_tensor(DType::u8, {bytes}), all = host_tensor(DType::u8, {ranks.size(), bytes});
  std::fill_n(static_cast<std::uint8_t*>(own.raw()), own.bytes(), std::uint8_t{0});
  std::vector<double> seconds;
  for (int i = -20; i < (bytes > 65536 ? 60 : 300); ++i) {
    const auto from = Clock::now();
    ranks.all_gather(own, all);
    if (i >= 0) seconds.push_back(seconds_between(from, Clock::now()));
  }
  return {ranks.size(), static_cast<double>(bytes), median_of(seconds)};
}

/// The most ranks that a host has among the first n. Collective.
int on_one_host(ProcessGroup& group, int n) {
  const std::int64_t counts = group.rank() < n ? 1 : 0;
  std::int64_t sum = counts;
  const Tensor t(nullptr, &sum, DType::i64, {1});
  group.host().all_reduce(t, Reduce::sum);
  return static_cast<int>(largest(group.world(), sum));
}

}  // namespace

int scale_command(std::span<const std::string> args, ProcessGroup& group) {
  const bool first = group.rank() == 0;
  const std::optional<ScaleOptions> parsed = parse_scale_options(args, first, group.size());
  if (!parsed) return 0;
  const ScaleOptions& o = *parsed;
  Communicator& world = group.world();
  Job job(o.mesh, o.shape, group);
  check(o.prompt_len + o.new_tokens <= job.config.seqlen, "--prompt-len {} and --new-tokens {} do not fit a context of {}", o.prompt_len, o.new_tokens, job.config.seqlen);
  on_first_rank(world, [&] {
    std::error_code error;
    std::filesystem::create_directories(o.report, error);
    if (error || !std::filesystem::is_directory(o.report)) fail(Fault::usage, "--report {}: {}", o.report.string(), error ? error.message() : "is not a folder");
    const std::filesystem::path report = o.report / "report.md";  // known before anything runs
    if (!std::ofstream(report, std::ios::app)) fail(Fault::usage, "--report {}: {} cannot be written", o.report.string(), report.string());
  });
  const Gpt& gpt = o.shape ? job.randomize(group) : job.load(o.mesh.checkpoint, group);

  ScaleResults results;
  std::int64_t is_first_of_host = group.local_rank() == 0 ? 1 : 0;
  world.all_reduce(Tensor(nullptr, &is_first_of_host, DType::i64, {1}), Reduce::sum);
  results.hosts = static_cast<int>(is_first_of_host);
  ModelConfig model = job.config;
  model.dtype = job.dtype;
  results.about = {{"kvmesh", version_text()}, {"device", job.device->describe()}, {"quantize", name_of(job.quantize)}, {"hosts", results.hosts}, {"ranks", o.ranks}, {"batch", o.mesh.batch_size}, {"rows_per_rank", o.rows_per_rank},
                   {"prompt_len", o.prompt_len}, {"new_tokens", o.new_tokens}, {"repeat", o.repeat}, {"model", Json::parse(to_json(model))}};

  std::vector<ScaleRun> plan;
  std::vector<std::unique_ptr<Communicator>> communicators;
  std::vector<int> hosts_ranks;
  for (const int n : o.ranks) {
    communicators.push_back(group.first(n));
    hosts_ranks.push_back(on_one_host(group, n));
    for (const ScaleRun::Kind kind : {ScaleRun::strong, ScaleRun::weak}) {
      ScaleRun run;
      run.kind = kind;
      run.ranks = n;
      run.on_host = hosts_ranks.back();
      run.rows = kind == ScaleRun::strong ? o.mesh.batch_size : o.rows_per_rank * n;
      plan.push_back(run);
    }
    for (std::int64_t bytes = 1 << 10; n > 1 && group.rank() < n && bytes <= 512 << 10; bytes *= 8) results.meetings.push_back(meeting_of(*communicators.back(), bytes));
    world.barrier();
  }
  for (std::int64_t rows = 1; rows <= std::max(o.mesh.batch_size, std::int64_t{4}); rows *= 2) {
    ScaleRun run;
    run.kind = ScaleRun::sweep;
    run.rows = rows;
    plan.push_back(run);
  }
  std::mt19937 shuffler(1);  // the same on every rank
  for (std::int64_t repeat = -1; repeat < o.repeat; ++repeat) {  // the first only warms up
    std::shuffle(plan.begin(), plan.end(), shuffler);
    for (const ScaleRun& planned : plan) {
      world.barrier();
      const auto at = static_cast<std::size_t>(std::find(o.ranks.begin(), o.ranks.end(), planned.ranks) - o.ranks.begin());
      if (group.rank() >= planned.ranks) continue;
      const ScaleRun run = run_once(gpt, *communicators[at], o, planned);
      if (repeat >= 0) results.runs.push_back(run);
    }
    world.barrier();
    if (first) say("kvmesh: {} of {} rounds of {} runs\n", repeat + 2, o.repeat + 1, plan.size());
  }
  on_first_rank(world, [&] {
    const std::string note = write_scale_report(results, o.report);
    fmt::print("{}\n", (o.report / "report.md").string());
    if (!note.empty()) say("kvmesh: {}\n", note);
  });
  return 0;
}

}  // namespace kvmesh
