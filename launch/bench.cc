// kvmesh bench: how fast prefill and decode are, beside what the device can do at most, measured in the same run (contract, section 7).
#include "launch/commands.h"
#include "launch/bench_parts.h"
#include "launch/job/agree.h"
#include "launch/job/job.h"
#include "launch/job/rows.h"
#include "comm/sharding.h"
#include "launch/version.h"
#include "model/generate.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <numeric>

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

/// What one run over the whole mesh took: the step that prefills, and each step that decodes, with sampling and synchronizing.
struct Times {
  double prefill;
  std::vector<double> steps;
};

Times run_once(const Gpt& gpt, Communicator& ranks, const BenchOptions& o) {
  GenerateOptions options;
  options.batch_size = o.mesh.batch_size;
  options.sync_every = 1;
  options.run_ahead = o.run_ahead;
  options.prefill_chunk = o.mesh.batch_size * o.prompt_len;  // prefill is one step, decode the others
  Generator generator(gpt, nullptr, ranks, options);
  std::vector<std::int32_t> prompt(static_cast<std::size_t>(o.prompt_len));
  for (std::size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<std::int32_t>((i * 7919 + 1) % static_cast<std::size_t>(gpt.config().vocab_size));
  const auto shared = std::make_shared<const std::vector<std::int32_t>>(std::move(prompt));
  std::int64_t entered = 0;
  std::vector<Clock::time_point> at;
  ranks.barrier();
  generator.run(
      [&]() -> std::optional<Row> {
        if (entered == o.mesh.batch_size) return std::nullopt;
        Row row;
        row.index = entered++;
        row.prompt = shared;
        row.max_new_tokens = o.new_tokens;
        return row;
      },
      [](const Row&, Completion&&) {},
      [&](const GenerateStats&) {
        at.push_back(Clock::now());
        return true;
      });
  at.push_back(Clock::now());
  const auto seconds = [&](std::size_t i) { return std::chrono::duration<double>(at[i + 1] - at[i]).count(); };
  Times times{seconds(0), {}};
  for (std::size_t i = 1; i < static_cast<std::size_t>(o.new_tokens); ++i) times.steps.push_back(seconds(i));
  return times;
}

/// Work that the formulas of the model ask for, whatever the implementation does besides.
struct Work {
  double prefill_flops;       // of the whole batch
  double decode_bytes;        // read by one average step of all ranks: each reads the weights once and its rows' keys and values
};

Work work_of(const ModelConfig& c, DType dtype, Quantize quantize, const BenchOptions& o, int ranks) {
  const auto d = static_cast<double>(c.d_emb), h = static_cast<double>(c.head_dim()), q = static_cast<double>(c.q_heads), kv = static_cast<double>(c.kv_heads),
             v = static_cast<double>(c.vocab_size), layers = static_cast<double>(c.num_layers), batch = static_cast<double>(o.mesh.batch_size);
  const double matrices = layers * (d * (q + 2 * kv) * h + q * h * d + static_cast<double>(c.mlp_columns() + c.mlp_width()) * d);  // elements
  Work work{batch * 2 * (matrices * static_cast<double>(o.prompt_len) + d * v), 0};
  double keys_of_step = 0;
  for (const ModelConfig::Layer& layer : c.layers()) {
    const auto seen = [&](std::int64_t position) { return static_cast<double>(layer.window < 0 ? position + 1 : std::min(position, layer.window) + 1); };
    for (std::int64_t p = 0; p < o.prompt_len; ++p) work.prefill_flops += batch * 4 * q * h * seen(p);
    double keys = 0;
    for (std::int64_t t = 1; t < o.new_tokens; ++t) keys += seen(o.prompt_len + t - 1);
    keys_of_step += o.new_tokens > 1 ? keys / static_cast<double>(o.new_tokens - 1) : 0;
  }
  const double active = std::min<double>(batch, ranks);  // ranks that have rows at all
  const double scales = layers * ((q + 2 * kv) * h + static_cast<double>(c.mlp_columns()) + 2 * d) + v;  // of integers
  const double width = static_cast<double>(size_of(dtype)), weights = matrices + d * v;
  work.decode_bytes = active * (quantize == Quantize::int8 ? weights + 4 * scales : width * weights) + width * batch * 2 * kv * h * keys_of_step;
  return work;
}

double sum_over(Communicator& ranks, double value) {
  const Tensor t(nullptr, &value, DType::f64, {1});
  ranks.all_reduce(t, Reduce::sum);
  return value;
}

}  // namespace

int bench_command(std::span<const std::string> args, ProcessGroup& group) {
  const bool first = group.rank() == 0;
  const std::optional<BenchOptions> parsed = parse_bench_options(args, first);
  if (!parsed) return 0;
  const BenchOptions& o = *parsed;
  Communicator& ranks = group.world();
  Job job(o.mesh, o.shape, group);
  check(o.prompt_len + o.new_tokens <= job.config.seqlen, "--prompt-len {} and --new-tokens {} do not fit a context of {}", o.prompt_len, o.new_tokens, job.config.seqlen);
  on_first_rank(ranks, [&] {  // known before anything runs
    if (o.json.empty()) return;
    std::error_code error;
    const bool there = std::filesystem::exists(o.json, error);
    if (!std::ofstream(o.json, std::ios::app)) fail(Fault::usage, "--json {}: cannot be written", o.json.string());
    if (!there) std::filesystem::remove(o.json, error);
  });
  const auto meet = [&] { ranks.barrier(); };
  meet();
  const auto loading = Clock::now();
  const Gpt& gpt = o.shape ? job.randomize(group) : job.load(o.mesh.checkpoint, group);

  meet();
  const double load_seconds = std::chrono::duration<double>(Clock::now() - loading).count();
  const Limits before = job.device->measure_limits(job.dtype, meet);
  run_once(gpt, ranks, o);  // touches memory and wakes threads up
  std::vector<double> prefill, steps;
  for (std::int64_t i = 0; i < o.repeat; ++i) {
    Times times = run_once(gpt, ranks, o);
    prefill.push_back(times.prefill);
    steps.insert(steps.end(), times.steps.begin(), times.steps.end());
  }

  const Limits after = job.device->measure_limits(job.dtype, meet);  // again, for shared machines have better and worse moments
  const Limits limits{sum_over(ranks, std::max(before.flops_per_s, after.flops_per_s)), sum_over(ranks, std::max(before.bytes_per_s, after.bytes_per_s))};

  const Work work = work_of(job.config, job.dtype, job.quantize, o, group.size());
  const auto batch = static_cast<double>(o.mesh.batch_size);
  const double prefill_s = median_of(prefill), step_s = median_of(steps);
  const auto over = [](double a, double b) { return b > 0 ? a / b : 0.0; };
  const double flops = work.prefill_flops / prefill_s, bytes = over(work.decode_bytes, step_s);
  ModelConfig model = job.config;
  model.dtype = job.dtype;
  Json out = {
      {"prefill", {{"tokens_per_s", batch * static_cast<double>(o.prompt_len) / prefill_s}, {"flops_per_s", flops}, {"peak_fraction", flops / limits.flops_per_s}, {"seconds", spread_of(prefill)}}},
      {"decode", {{"tokens_per_s", over(batch, step_s)}, {"bytes_per_s", bytes}, {"bandwidth_fraction", bytes / limits.bytes_per_s}, {"ms_per_step", 1e3 * step_s}, {"seconds", spread_of(steps)}}},
      {"limits", {{"flops_per_s", limits.flops_per_s}, {"bytes_per_s", limits.bytes_per_s}}},
      {"ranks", group.size()},
      {"device", job.device->describe()},
      {"dtype", name_of(job.dtype)},
      {"quantize", name_of(job.quantize)},
      {"batch", o.mesh.batch_size},
      {"prompt_len", o.prompt_len},
      {"new_tokens", o.new_tokens},
      {"repeat", o.repeat},
      {"run_ahead", o.run_ahead},
      {"model", Json::parse(to_json(model))},
      {"kvmesh", version_text()}};
  const std::int64_t rows = split(o.mesh.batch_size, group.size(), 0).size();  // of rank 0, which speaks
  if (o.load) {
    std::error_code error;
    double file_bytes = 0;
    for (const auto& entry : std::filesystem::directory_iterator(o.mesh.checkpoint, error)) {
      if (entry.path().extension() == ".safetensors") file_bytes += static_cast<double>(entry.file_size());
    }
    out["load"] = {{"seconds", load_seconds}, {"bytes", file_bytes}, {"bytes_per_s", file_bytes / load_seconds}};
  }
  if (o.ops) out["ops"] = bench_operations(gpt, before, o, std::max<std::int64_t>(rows, 1));
  if (const Json products = bench_products(gpt, o, std::max<std::int64_t>(rows, 1)); !products.is_null()) out["equal_bits"] = products;
  if (o.sampler) out["sampler"] = bench_sampler(gpt, std::max<std::int64_t>(rows, 1), step_s);
  ranks.barrier();
  if (o.collectives) out["collectives"] = bench_collectives(ranks);
  on_first_rank(ranks, [&] {
    fmt::print("prefill {:.0f} tokens/s, {:.1f} GFLOP/s, {:.0f} % of {:.0f}\ndecode  {:.1f} tokens/s, {:.2f} ms a step, {:.1f} GB/s, {:.0f} % of {:.1f}\n",
               batch * static_cast<double>(o.prompt_len) / prefill_s, flops / 1e9, 100 * flops / limits.flops_per_s, limits.flops_per_s / 1e9, over(batch, step_s),
               1e3 * step_s, bytes / 1e9, 100 * bytes / limits.bytes_per_s, limits.bytes_per_s / 1e9);
    if (o.load) fmt::print("load    {:.2f} s, {:.2f} GB/s of the checkpoint's files\n", load_seconds, out["load"]["bytes_per_s"].get<double>() / 1e9);
    if (o.ops) print_operations(out["ops"]);
    if (out.contains("equal_bits")) print_products(out["equal_bits"]);
    if (o.sampler) print_sampler(out["sampler"]);
    if (o.collectives) print_collectives(out["collectives"]);
    if (o.json.empty()) return;
    std::ofstream file(o.json);
    file << out.dump(2) << '\n';
    if (!file.flush()) fail(Fault::io, "--json {}: cannot be written", o.json.string());
  });
  return 0;
}

}  // namespace kvmesh
