// kvmesh train: a model, token shards, steps; what is saved is what generate reads, and the same command goes on where it was stopped.
#include "launch/commands.h"

#include "comm/agreement.h"
#include "launch/job/agree.h"
#include "launch/job/file.h"
#include "launch/job/job.h"
#include "launch/job/plots.h"
#include "launch/job/signals.h"
#include "launch/job/train_checkup.h"
#include "launch/job/train_report.h"
#include "launch/job/train_samples.h"
#include "model/memory.h"
#include "model/hash.h"
#include "model/train/train_checkpoint.h"
#include "model/train/trainer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>

#include <algorithm>
#include <chrono>
#include <cstring>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

/// Everything that a step's bits depend on.
std::string options_of(const TrainCommandOptions& o, const Job& job, const DataOptions& data, std::span<const fs::path> validation) {
  const OptimizerOptions& opt = o.optimizer;
  const auto list = [](std::span<const fs::path> paths) {
    nlohmann::ordered_json files = nlohmann::ordered_json::array();
    for (const fs::path& file : paths) files.push_back(fmt::format("{} ({} bytes, hash {})", file.filename().string(), fs::file_size(file), file_hash(file, 1 << 20)));
    return files;
  };
  const nlohmann::ordered_json json = {
      {"model", nlohmann::ordered_json::parse(to_json(job.config))},
      {"dtype", std::string(name_of(job.dtype))},
      {"device", job.device->kind()},
      {"init", o.init == "weights" ? job.hash_of_checkpoint(o.mesh.checkpoint) : o.init},
      {"seed", data.seed},
      {"data", list(data.files)},
      {"validation", list(validation)},
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
    if (a.contains(key) && a.at(key) == value) continue;
    const bool list = value.is_array();  // of files: hundreds, maybe
    fail(Fault::usage, "{} was begun with another {}{}; --fresh begins anew", output.string(), key, list ? "" : fmt::format(": {}, now {}", a.contains(key) ? a.at(key).dump() : "none", value.dump()));
  }
}

/// Keeps a second job off the folder, as long as it lives.
std::unique_ptr<File> lock(const fs::path& output) {
  fs::create_directories(output);
  auto file = std::make_unique<File>(output / ".lock", O_CREAT | O_RDWR);
  check(flock(file->fd(), LOCK_EX | LOCK_NB) == 0, "--output {}: another job trains there", output.string());
  return file;
}

/// A line that a crash has torn is ended.
std::unique_ptr<File> open_metrics(const fs::path& name, bool fresh) {
  auto file = std::make_unique<File>(name, O_CREAT | O_RDWR | O_APPEND | (fresh ? O_TRUNC : 0));
  std::string last;
  if (fs::is_regular_file(name) && fs::file_size(name) > 0) file->read_at(static_cast<std::int64_t>(fs::file_size(name)) - 1, 1, last);
  if (!last.empty() && last != "\n") file->write("\n");
  return file;
}

/// The ranks' own parts of a vector, put together on every rank. Collective.
Tensor gathered(Communicator& ranks, const Optimizer& optimizer, const Tensor& own, std::int64_t size) {
  std::vector<std::int64_t> counts;
  for (const Range& owner : optimizer.owners()) counts.push_back(owner.size());
  const Tensor all = host_tensor(DType::f32, {size});
  ranks.all_gather_ragged(own, counts, all);
  return all;
}

/// Tokens that a token of these batches sees on average over the layers, itself included.
double keys_of(const ModelConfig& config, std::span<const TrainBatch> batches) {
  double keys = 0, tokens = 0;
  const std::vector<ModelConfig::Layer> layers = config.layers();
  for (const TrainBatch& batch : batches) {
    tokens += static_cast<double>(batch.ids.size());
    for (const Segment& s : batch.segments) {
      for (const ModelConfig::Layer& layer : layers) {
        const double n = s.count, most = layer.window < 0 ? n : std::min(n, static_cast<double>(layer.window + 1));
        keys += most * (most + 1) / 2 + (n - most) * most;
      }
    }
  }
  return tokens > 0 ? keys / tokens / static_cast<double>(layers.size()) : 0;
}

/// The newest saved step as rank 0 finds it, on every rank: only that rank need see the folder. False if there is none. Collective.
bool go_on(Communicator& ranks, const TrainCommandOptions& o, const ModelConfig& config, const ParamLayout& layout, const Optimizer& optimizer, const Tensor& vector, TrainProgress& progress) {
  TrainCheckpoint checkpoint;
  std::string text;
  on_first_rank(ranks, [&] {
    clean_output(o.mesh.output, o.fresh);
    const std::optional<TrainProgress> saved = find_progress(o.mesh.output);
    if (!saved) return;
    check_same(saved->options, progress.options, o.mesh.output);
    checkpoint = read_train_checkpoint(o.mesh.output, config, layout);
    text = to_json(checkpoint.progress);
  });
  broadcast_bytes(ranks, text);
  if (text.empty()) return false;
  progress = parse_progress(text, (o.mesh.output / "training.json").string());
  const Range own = optimizer.own();
  const Tensor whole = host_tensor(DType::f32, {layout.size});
  const auto spread = [&](const Tensor& from, const Tensor& to, Range part) {
    if (from.defined()) std::memcpy(whole.raw(), from.raw(), whole.bytes());
    ranks.broadcast(whole, 0);
    if (to.bytes() > 0) std::memcpy(to.raw(), whole.data<float>() + part.begin, to.bytes());
  };
  spread(checkpoint.parameters, vector, {0, layout.size});
  spread(checkpoint.m, optimizer.m(), own);
  spread(checkpoint.v, optimizer.v(), own);
  return true;
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
  check(config.native(), "{}: \"model_type\": training is there for the original's architecture only, not for {}", (o.mesh.checkpoint / "config.json").string(), config.family);
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
  std::vector<fs::path> validation_files;
  if (!o.validation.empty()) {
    DataOptions rows = data;
    rows.files = validation_files = find_shards(o.validation);
    validation = std::make_unique<const AllRows>(rows, o.micro_rows);
  }

  TrainerOptions options{.optimizer = o.optimizer, .batch = {}, .recompute = o.recompute};
  options.batch = {o.batch_rows, o.micro_rows, split(o.batch_rows / o.micro_rows, ranks.size(), ranks.rank())};
  const std::int64_t needed = check_train_memory(job, layout, options, samples.count(), group);
  Trainer trainer(config, job.dtype, *job.device, ranks, layout, options);
  const Optimizer& optimizer = trainer.optimizer();

  // Where to begin: the newest saved step, or the start.
  std::unique_ptr<File> held;
  on_first_rank(ranks, [&] { held = lock(o.mesh.output); });
  TrainProgress progress;
  progress.options = options_of(o, job, data, validation_files);
  const Tensor vector = trainer.parameters();
  check_agreement(ranks, hash_of(progress.options, 0), "what training depends on (options, weights, data, kind of device)");
  if (!go_on(ranks, o, config, layout, optimizer, vector, progress)) {
    if (o.init == "weights") read_parameters(o.mesh.checkpoint, config, layout, vector);
    else initialize(config, layout, o.init == "copying" ? Init::copying : Init::original, data.seed, vector);
  }
  trainer.parameters_changed();

  TrainSaver saver(o.mesh.output, config, tokenizer_file(o.mesh.checkpoint), o.keep);
  std::unique_ptr<File> metrics;
  if (!o.metrics.empty()) on_first_rank(ranks, [&] { metrics = open_metrics(o.metrics, o.fresh); });
  const double peak = o.no_peak ? 0 : job.device->measure_limits(job.dtype).flops_per_s * ranks.size();
  TrainReport report(first, o.optimizer.steps, progress.step, peak, metrics.get());
  DataLoader loader(data, options.batch, progress.cursor);
  const auto is_tired = [&] { return o.patience > 0 && progress.step - progress.best_train_step > o.patience; };
  bool stopped = false, tired = is_tired(), more = progress.step < o.optimizer.steps && !tired;
  std::vector<TrainBatch> batches;
  if (more) batches = loader.next();
  std::int64_t parameters = 0;
  for (const Matrix& m : layout.matrices) parameters += m.size();
  report.begin(fmt::format("{} parameters, {} rows of {} tokens a step, {} steps{}, about {} a rank, on {} rank{} of {}", parameters, o.batch_rows, config.seqlen, o.optimizer.steps,
                           progress.step > 0 ? fmt::format(" ({} are done)", progress.step) : "", readable_bytes(needed), ranks.size(), ranks.size() == 1 ? "" : "s", job.device->describe()));
  if (const std::int64_t leaves = o.batch_rows / o.micro_rows; leaves < ranks.size()) {
    report.begin(fmt::format("a step has {} micro-batch{}, so that {} of the ranks have none: see --micro-rows", leaves, leaves == 1 ? "" : "es", ranks.size() - leaves));
  }
  const auto save = [&] {
    const Tensor m = gathered(ranks, optimizer, optimizer.m(), layout.size), v = gathered(ranks, optimizer, optimizer.v(), layout.size);
    for (const Tensor* x : {&vector, &m, &v}) {
      trainer.check_finite(*x, fmt::format("step {}: {}", progress.step, x == &vector ? "the new weight" : "the optimizer's state"));
    }
    progress.cursor = loader.cursor();
    on_first_rank(ranks, [&] { saver.wait(); });  // the others know that it lives
    if (first) saver.save(layout, {progress, vector, m, v});
  };
  std::int64_t last_saved = progress.step;
  try {
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
      tired = is_tired();
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
      report.step({progress.step, step, seconds, Backprop::flops_per_token(config, keys_of(config, batches)), validated, trainer.times(), said, done || stopped});
      if (done || stopped || progress.best_step == progress.step || (o.save_every > 0 && progress.step % o.save_every == 0)) {
        save();
        last_saved = progress.step;
      }
      more = !done && !stopped;
      if (more) batches = loader.next();
    }
  } catch (const NotFinite&) {
    on_first_rank(ranks, [&] { saver.wait(); });  // what was saved before is good
    throw;
  }
  const bool unfinished = stopped && progress.step < o.optimizer.steps && !tired;
  on_first_rank(ranks, [&] {
    saver.wait();
    if (metrics && fs::is_regular_file(o.metrics)) plot_losses(o.metrics, o.mesh.output / "loss");
  });
  report.end(unfinished
                 ? fmt::format("stopped after step {}; the same command{} goes on", last_saved, o.fresh ? " without --fresh" : "")
                 : fmt::format("{} steps, {} tokens{}{}; {}/last", progress.step, progress.tokens, tired ? fmt::format(", no lower loss for {} steps", o.patience) : "",
                               progress.best_step > 0 ? fmt::format(", best validation loss {:.4f} after step {}", progress.best_loss, progress.best_step) : "", o.mesh.output.string()));
  return unfinished ? 75 : 0;
}

}  // namespace kvmesh
