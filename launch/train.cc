// kvmesh train: a model, token shards, steps; what is saved is what generate reads, and the same command goes on where it was stopped.
#include "launch/commands.h"

#include "launch/job/agree.h"
#include "launch/job/file.h"
#include "launch/job/job.h"
#include "launch/job/plots.h"
#include "launch/job/signals.h"
#include "launch/job/train_checkup.h"
#include "launch/job/train_report.h"
#include "launch/job/train_samples.h"
#include "model/memory.h"
#include "model/train/train_checkpoint.h"
#include "model/train/trainer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>

#include <chrono>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

/// Everything that a step's bits depend on.
std::string options_of(const TrainCommandOptions& o, const Job& job, const DataOptions& data) {
  const OptimizerOptions& opt = o.optimizer;
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const fs::path& file : data.files) files.push_back(fmt::format("{} ({} bytes)", file.filename().string(), fs::file_size(file)));
  const nlohmann::ordered_json json = {
      {"model", nlohmann::ordered_json::parse(to_json(job.config))},
      {"dtype", std::string(name_of(job.dtype))},
      {"device", job.device->kind()},
      {"init", o.init == "weights" ? job.hash_of_checkpoint(o.mesh.checkpoint) : o.init},
      {"seed", data.seed},
      {"data", files},
      {"end-of-text", data.end_of_text},
      {"rows", data.rows == RowKind::filled ? "filled" : "whole"},
      {"documents", data.documents_apart ? "apart" : "joined"},
      {"shuffle", data.shuffle},
      {"steps", opt.steps},
      {"batch-rows", o.batch_rows},
      {"micro-rows", o.micro_rows},
      {"optimizer", opt.muon ? "muon" : "adamw"},
      {"lr", opt.lr},
      {"lr-floor", opt.floor},
      {"warmup", opt.warmup},
      {"schedule", opt.schedule_all ? "all" : "blocks"},
      {"embed-lr", opt.embed_lr},
      {"head-lr", opt.head_lr},
      {"beta1", opt.beta1},
      {"beta2", opt.beta2},
      {"eps", opt.eps},
      {"momentum", opt.momentum},
      {"newton-schulz", opt.newton_schulz_steps},
      {"weight-decay", opt.weight_decay},
      {"decay-rule", opt.rule == DecayRule::cautious ? "cautious" : opt.rule == DecayRule::original ? "original" : "plain"},
      {"clip", opt.clip},
      {"patience", o.patience},
  };
  return json.dump();
}

/// An Error that names the first option that is not what it was.
void check_same(const std::string& before, const std::string& now, const fs::path& output) {
  const auto a = nlohmann::ordered_json::parse(before), b = nlohmann::ordered_json::parse(now);
  for (const auto& [key, value] : b.items()) {
    check(a.contains(key) && a.at(key) == value, "{} was begun with another {}: {}, now {}; --fresh begins anew", output.string(), key, a.contains(key) ? a.at(key).dump() : "none",
          value.dump());
  }
}

/// Keeps a second job off the folder, as long as it lives.
std::unique_ptr<File> lock(const fs::path& output) {
  fs::create_directories(output);
  auto file = std::make_unique<File>(output / ".lock", O_CREAT | O_RDWR);
  check(flock(file->fd(), LOCK_EX | LOCK_NB) == 0, "--output {}: another job trains there", output.string());
  return file;
}

/// Own part of a vector that every rank has, and back.
Tensor gathered(Communicator& ranks, const Optimizer& optimizer, const Tensor& own, std::int64_t size) {
  std::vector<std::int64_t> counts;
  for (const Range& owner : optimizer.owners()) counts.push_back(owner.size());
  const Tensor all = host_tensor(DType::f32, {size});
  ranks.all_gather_ragged(own, counts, all);
  return all;
}

/// Tokens that a token of these batches sees on average, itself included.
double keys_of(std::span<const TrainBatch> batches) {
  double keys = 0, tokens = 0;
  for (const TrainBatch& batch : batches) {
    tokens += static_cast<double>(batch.ids.size());
    for (const Segment& s : batch.segments) keys += static_cast<double>(s.count) * (s.count + 1) / 2;
  }
  return tokens > 0 ? keys / tokens : 0;
}

}  // namespace

int train_command(std::span<const std::string> args, ProcessGroup& group) {
  const bool first = group.rank() == 0;
  const std::optional<TrainCommandOptions> parsed = parse_train_options(args, first);
  if (!parsed) return 0;
  const TrainCommandOptions& o = *parsed;
  Job job(o.mesh, group);
  Communicator& ranks = group.world();
  const ModelConfig& config = job.config;
  const ParamLayout layout(config);

  DataOptions data = o.rows;
  data.files = find_shards(o.data);
  data.seqlen = config.seqlen;
  data.vocab_size = config.vocab_size;
  data.end_of_text = o.end_of_text >= 0 ? o.end_of_text : job.tokenizer ? job.tokenizer->end_of_text() : -1;
  check(data.end_of_text >= 0 && data.end_of_text < config.vocab_size, "--end-of-text {}: the token that begins a document must be one of the model's {}", data.end_of_text,
        config.vocab_size);
  const TrainSamples samples(o, job, data.end_of_text);
  std::unique_ptr<const AllRows> validation;
  if (!o.validation.empty()) {
    DataOptions rows = data;
    rows.files = find_shards(o.validation);
    validation = std::make_unique<const AllRows>(rows, o.micro_rows);
  }

  TrainerOptions options{.optimizer = o.optimizer, .batch = {}, .recompute = o.recompute};
  options.batch = {o.batch_rows, o.micro_rows, split(o.batch_rows / o.micro_rows, ranks.size(), ranks.rank())};
  const std::int64_t needed = check_train_memory(job, layout, options, samples.count(), group);
  Trainer trainer(config, job.dtype, *job.device, ranks, layout, options);
  const Optimizer& optimizer = trainer.optimizer();
  const Range own = optimizer.own();

  // Where to begin: the newest saved step, or the start.
  std::unique_ptr<File> held;
  on_first_rank(ranks, [&] {
    held = lock(o.mesh.output);
    clean_output(o.mesh.output, o.fresh);
  });
  TrainProgress progress;
  progress.options = options_of(o, job, data);
  const Tensor vector = trainer.parameters();
  const std::optional<TrainProgress> saved = find_progress(o.mesh.output);
  if (saved) {
    check_same(saved->options, progress.options, o.mesh.output);
    const TrainCheckpoint checkpoint = read_train_checkpoint(o.mesh.output, config, layout);
    progress = checkpoint.progress;
    job.device->copy(checkpoint.parameters, vector);
    job.device->copy(checkpoint.m.slice(own.begin, own.end), optimizer.m());
    job.device->copy(checkpoint.v.slice(own.begin, own.end), optimizer.v());
  } else if (o.init == "weights") {
    read_parameters(o.mesh.checkpoint, config, layout, vector);
  } else {
    initialize(config, layout, o.init == "copying" ? Init::copying : Init::original, data.seed, vector);
  }
  trainer.parameters_changed();

  const fs::path tokenizer = o.mesh.checkpoint / "tokenizer.tiktoken";
  TrainSaver saver(o.mesh.output, config, fs::exists(tokenizer) ? tokenizer : fs::path(), o.keep);
  std::unique_ptr<File> metrics;
  if (!o.metrics.empty()) on_first_rank(ranks, [&] { metrics = std::make_unique<File>(o.metrics, O_CREAT | O_WRONLY | O_APPEND); });
  const double peak = o.no_peak ? 0 : job.device->measure_limits(job.dtype).flops_per_s * ranks.size();
  TrainReport report(first, o.optimizer.steps, progress.step, peak, metrics.get());
  DataLoader loader(data, options.batch, progress.cursor);
  bool stopped = false, tired = false, more = progress.step < o.optimizer.steps;
  std::vector<TrainBatch> batches;
  if (more) batches = loader.next();
  report.begin(fmt::format("{} parameters, {} rows of {} tokens a step, {} steps{}, about {} a rank, on {} rank{} of {}", layout.size, o.batch_rows, config.seqlen, o.optimizer.steps,
                           progress.step > 0 ? fmt::format(" ({} are done)", progress.step) : "", readable_bytes(needed), ranks.size(), ranks.size() == 1 ? "" : "s", job.device->describe()));
  const auto save = [&] {
    const Tensor m = gathered(ranks, optimizer, optimizer.m(), layout.size), v = gathered(ranks, optimizer, optimizer.v(), layout.size);
    progress.cursor = loader.cursor();
    if (first) saver.save(layout, {progress, vector, m, v});
  };
  std::int64_t last_saved = progress.step;
  while (more) {
    const auto begun = std::chrono::steady_clock::now();
    const Trainer::Step step = trainer.step(progress.step, batches);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
    ++progress.step;
    progress.tokens += step.tokens;
    progress.loss = step.loss;
    if (step.loss < progress.best_train_loss) {
      progress.best_train_loss = step.loss;
      progress.best_train_step = progress.step;
    }
    tired = o.patience > 0 && progress.step - progress.best_train_step > o.patience;
    stopped = largest(ranks, stop_requested()) != 0;
    const bool done = progress.step == o.optimizer.steps || tired;
    std::optional<double> validated;
    if (validation && (done || (o.validate_every > 0 && progress.step % o.validate_every == 0))) {
      validated = trainer.evaluate(*validation);
      if (*validated < progress.best_loss) {
        progress.best_loss = *validated;
        progress.best_step = progress.step;
      }
    }
    const std::vector<TrainSample> said = samples.due(progress.step, done) ? samples.make(trainer.gpt(), ranks) : std::vector<TrainSample>();
    report.step({progress.step, step, seconds, Backprop::flops_per_token(config, keys_of(batches)), validated, trainer.times(), said, done || stopped});
    if (done || stopped || progress.best_step == progress.step || (o.save_every > 0 && progress.step % o.save_every == 0)) {
      save();
      last_saved = progress.step;
    }
    more = !done && !stopped;
    if (more) batches = loader.next();
  }
  const bool unfinished = stopped && progress.step < o.optimizer.steps && !tired;
  on_first_rank(ranks, [&] {
    saver.wait();
    if (metrics) plot_losses(o.metrics, o.mesh.output / "loss");
  });
  report.end(unfinished
                 ? fmt::format("stopped after step {}; the same command goes on", last_saved)
                 : fmt::format("{} steps, {} tokens{}{}; {}/last", progress.step, progress.tokens, tired ? fmt::format(", no lower loss for {} steps", o.patience) : "",
                               progress.best_step > 0 ? fmt::format(", best validation loss {:.4f} after step {}", progress.best_loss, progress.best_step) : "", o.mesh.output.string()));
  return unfinished ? 75 : 0;
}

}  // namespace kvmesh
