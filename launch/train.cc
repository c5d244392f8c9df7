// kvmesh train: a model, token shards, steps; what is saved is what generate reads, and the same command goes on where it was stopped.
#include "launch/commands.h"

#include "comm/agreement.h"
#include "launch/job/agree.h"
#include "launch/job/plots.h"
#include "launch/job/signals.h"
#include "launch/job/train_begin.h"
#include "launch/job/train_checkup.h"
#include "launch/job/train_report.h"
#include "launch/job/train_samples.h"
#include "model/hash.h"
#include "model/memory.h"
#include "model/train/train_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

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

/// What to train on, and to validate on if anything.
struct TrainData {
  DataOptions options;
  std::vector<fs::path> validation_files;
  std::unique_ptr<const AllRows> validation;
};

TrainData find_data(const TrainCommandOptions& o, const Job& job) {
  TrainData data{.options = o.rows, .validation_files = {}, .validation = nullptr};
  data.options.files = find_shards(o.data);
  data.options.seqlen = job.config.seqlen;
  data.options.vocab_size = job.config.vocab_size;
  data.options.end_of_text = o.end_of_text >= 0 ? o.end_of_text : job.tokenizer ? job.tokenizer->end_of_text() : -1;
  check(data.options.end_of_text >= 0 && data.options.end_of_text < job.config.vocab_size, "--end-of-text {}: the token that begins a document must be one of the model's {}",
        data.options.end_of_text, job.config.vocab_size);
  if (o.validation.empty()) return data;
  DataOptions rows = data.options;
  rows.files = data.validation_files = find_shards(o.validation);
  data.validation = std::make_unique<const AllRows>(rows, o.micro_rows);
  return data;
}

TrainerOptions trainer_options(const TrainCommandOptions& o, const Communicator& ranks) {
  return {.optimizer = o.optimizer,
          .batch = {o.batch_rows, o.micro_rows, split(o.batch_rows / o.micro_rows, ranks.size(), ranks.rank())},
          .recompute = o.recompute,
          .library_sum = o.library_sum};
}

/// One run of the command, all of it collective.
class Training {
 public:
  Training(const TrainCommandOptions& o, Job& job, const ParamLayout& layout, const TrainData& data, const TrainSamples& samples, ProcessGroup& group)
      : o_(o),
        job_(job),
        layout_(layout),
        data_(data),
        samples_(samples),
        ranks_(group.world()),
        first_(group.rank() == 0),
        options_(trainer_options(o, ranks_)),
        needed_(check_train_memory(job, layout, options_, samples.count(), group)),
        trainer_(job.config, job.dtype, *job.device, ranks_, layout, options_),
        saver_(o.mesh.output, job.config, tokenizer_file(o.mesh.checkpoint), o.keep) {}

  int run();

 private:
  void find_beginning();
  void announce(TrainReport& report) const;
  void take_steps(DataLoader& loader, std::vector<TrainBatch> batches, TrainReport& report);
  Trainer::Step step(std::span<const TrainBatch> batches, double& seconds);
  std::optional<double> validate();
  void save(const DataCursor& cursor);
  void end(TrainReport& report, bool unfinished);

  bool is_tired() const { return o_.patience > 0 && progress_.step - progress_.best_train_step > o_.patience; }
  bool is_done() const { return progress_.step >= o_.optimizer.steps || is_tired(); }

  const TrainCommandOptions& o_;
  Job& job_;
  const ParamLayout& layout_;
  const TrainData& data_;
  const TrainSamples& samples_;
  Communicator& ranks_;
  bool first_;
  TrainerOptions options_;
  std::int64_t needed_;  // bytes of the rank with the most
  Trainer trainer_;
  std::unique_ptr<File> held_, metrics_;  // the first rank's, as the next
  TrainSaver saver_;
  TrainProgress progress_;
  std::int64_t last_saved_ = 0;
};

/// The newest saved step, or the start.
void Training::find_beginning() {
  on_first_rank(ranks_, [&] { held_ = lock_output(o_.mesh.output); });
  progress_.options = training_options(o_, job_, data_.options, data_.validation_files);
  check_agreement(ranks_, hash_of(progress_.options, 0), "what training depends on (options, weights, data, kind of device)");
  if (!go_on(ranks_, *job_.device, o_, job_.config, layout_, trainer_, progress_)) {
    if (o_.init == "weights") read_parameters(o_.mesh.checkpoint, job_.config, layout_, trainer_.parameters());
    else initialize(job_.config, layout_, o_.init == "copying" ? Init::copying : Init::original, data_.options.seed, trainer_.parameters());
  }
  trainer_.parameters_changed();
  last_saved_ = progress_.step;
}

void Training::announce(TrainReport& report) const {
  std::int64_t parameters = 0;
  for (const Matrix& m : layout_.matrices) parameters += m.size();
  report.begin(fmt::format("{} parameters, {} rows of {} tokens a step, {} steps{}, about {} a rank, on {} rank{} of {}", parameters, o_.batch_rows, job_.config.seqlen, o_.optimizer.steps,
                           progress_.step > 0 ? fmt::format(" ({} are done)", progress_.step) : "", readable_bytes(needed_), ranks_.size(), ranks_.size() == 1 ? "" : "s",
                           job_.device->describe()));
  if (const std::int64_t leaves = o_.batch_rows / o_.micro_rows; leaves < ranks_.size()) {
    report.begin(fmt::format("a step has {} micro-batch{}, so that {} of the ranks have none: see --micro-rows", leaves, leaves == 1 ? "" : "es", ranks_.size() - leaves));
  }
}

Trainer::Step Training::step(std::span<const TrainBatch> batches, double& seconds) {
  const auto begun = std::chrono::steady_clock::now();
  const Trainer::Step step = trainer_.step(progress_.step, batches);
  seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count();
  ++progress_.step;
  progress_.tokens += step.tokens;
  progress_.loss = step.loss;
  if (step.loss < progress_.best_train_loss) {
    progress_.best_train_loss = step.loss;
    progress_.best_train_step = progress_.step;
  }
  return step;
}

/// The loss, where it is time for it.
std::optional<double> Training::validate() {
  if (!data_.validation || !(is_done() || (o_.validate_every > 0 && progress_.step % o_.validate_every == 0))) return std::nullopt;
  const double loss = trainer_.evaluate(*data_.validation);
  if (loss < progress_.best_loss) {
    progress_.best_loss = loss;
    progress_.best_step = progress_.step;
  }
  return loss;
}

void Training::save(const DataCursor& cursor) {
  const Optimizer& optimizer = trainer_.optimizer();
  trainer_.check_finite(fmt::format("step {}: the new weight", progress_.step));
  for (const Tensor* own : {&optimizer.m(), &optimizer.v()}) trainer_.check_own_finite(*own, fmt::format("step {}: the optimizer's state", progress_.step));
  const auto collected = [&](const Tensor& own) {
    const Tensor whole = first_ ? host_tensor(DType::f32, {layout_.size}) : Tensor();
    collect_state(ranks_, *job_.device, optimizer.owners(), own, whole);
    return whole;
  };
  const Tensor m = collected(optimizer.m()), v = collected(optimizer.v());
  progress_.cursor = cursor;
  on_first_rank(ranks_, [&] { saver_.wait(); });  // the others know that it lives
  if (first_) saver_.save(layout_, {progress_, trainer_.parameters(), m, v});
  last_saved_ = progress_.step;
}

/// `batches` are the first step's.
void Training::take_steps(DataLoader& loader, std::vector<TrainBatch> batches, TrainReport& report) {
  for (bool more = !is_done(); more;) {
    double seconds = 0;
    const Trainer::Step taken = step(batches, seconds);
    const bool stopped = largest(ranks_, stop_requested()) != 0, done = is_done();
    const std::optional<double> validated = validate();
    const std::vector<TrainSample> said = samples_.due(progress_.step, done) ? samples_.make(trainer_.gpt(), ranks_) : std::vector<TrainSample>();
    report.step({progress_.step, taken, seconds, Backprop::flops_per_token(job_.config, keys_of(job_.config, batches)), validated, trainer_.times(), said, done || stopped});
    if (done || stopped || progress_.best_step == progress_.step || (o_.save_every > 0 && progress_.step % o_.save_every == 0)) save(loader.cursor());
    more = !done && !stopped;
    if (more) batches = loader.next();
  }
}

void Training::end(TrainReport& report, bool unfinished) {
  on_first_rank(ranks_, [&] {
    saver_.wait();
    if (metrics_ && fs::is_regular_file(o_.metrics)) plot_losses(o_.metrics, o_.mesh.output / "loss");
  });
  report.end(unfinished ? fmt::format("stopped after step {}; the same command{} goes on", last_saved_, o_.fresh ? " without --fresh" : "")
                        : fmt::format("{} steps, {} tokens{}{}; {}/last", progress_.step, progress_.tokens, is_tired() ? fmt::format(", no lower loss for {} steps", o_.patience) : "",
                                      progress_.best_step > 0 ? fmt::format(", best validation loss {:.4f} after step {}", progress_.best_loss, progress_.best_step) : "",
                                      o_.mesh.output.string()));
}

/// The exit code.
int Training::run() {
  find_beginning();
  if (!o_.metrics.empty()) on_first_rank(ranks_, [&] { metrics_ = open_metrics(o_.metrics, o_.fresh); });
  const double peak = o_.no_peak ? 0 : job_.device->measure_limits(job_.dtype, [&] { ranks_.barrier(); }).flops_per_s * ranks_.size();
  TrainReport report(first_, o_.optimizer.steps, progress_.step, peak, metrics_.get());
  DataLoader loader(data_.options, options_.batch, progress_.cursor);
  std::vector<TrainBatch> batches;
  if (!is_done()) batches = loader.next();
  announce(report);
  try {
    take_steps(loader, std::move(batches), report);
  } catch (const NotFinite&) {
    on_first_rank(ranks_, [&] { saver_.wait(); });  // what was saved before is good
    throw;
  }
  const bool unfinished = !is_done();
  end(report, unfinished);
  return unfinished ? 75 : 0;
}

}  // namespace

int train_command(std::span<const std::string> args, ProcessGroup& group) {
  const std::optional<TrainCommandOptions> o = parse_train_options(args, group.rank() == 0);
  if (!o) return 0;
  Job job(o->mesh, group);
  check(job.config.native(), "{}: \"model_type\": training is there for the original's architecture only, not for {}", (o->mesh.checkpoint / "config.json").string(), job.config.family);
  const ParamLayout layout(job.config);
  const TrainData data = find_data(*o, job);
  const TrainSamples samples(*o, job, data.options.end_of_text);
  return Training(*o, job, layout, data, samples, group).run();
}

}  // namespace kvmesh
