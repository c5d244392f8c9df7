#include "launch/job/train_begin.h"

#include "launch/job/agree.h"
#include "model/hash.h"
#include "model/train/train_state.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>
#include <sys/file.h>

#include <cstring>
#include <optional>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr int arithmetic = 2;  // raised by whatever changes the bits of a step: a run goes on with the bits that it began with, or not at all

/// An Error that names the first option that is not what it was.
void check_same(const std::string& before, const std::string& now, const fs::path& output) {
  const auto a = nlohmann::ordered_json::parse(before), b = nlohmann::ordered_json::parse(now);
  for (const auto& [key, value] : b.items()) {
    if (a.contains(key) && a.at(key) == value) continue;
    if (key == "arithmetic") fail(Fault::usage, "{} was begun by a version of kvmesh whose steps have other bits; --fresh starts over", output.string());
    const bool list = value.is_array();  // of files: hundreds, maybe
    fail(Fault::usage, "{} was begun with another {}{}; --fresh begins anew", output.string(), key, list ? "" : fmt::format(": {}, now {}", a.contains(key) ? a.at(key).dump() : "none", value.dump()));
  }
}

}  // namespace

std::string training_options(const TrainCommandOptions& o, const Job& job, const DataOptions& data, std::span<const fs::path> validation) {
  const OptimizerOptions& opt = o.optimizer;
  const auto list = [](std::span<const fs::path> paths) {
    nlohmann::ordered_json files = nlohmann::ordered_json::array();
    for (const fs::path& file : paths) files.push_back(fmt::format("{} ({} bytes, hash {})", file.filename().string(), fs::file_size(file), file_hash(file, 1 << 20)));
    return files;
  };
  const nlohmann::ordered_json json = {
      {"arithmetic", arithmetic},
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
      {"reduce", o.library_sum ? "library" : "tree"},
  };
  return json.dump();
}

std::unique_ptr<File> lock_output(const fs::path& output) {
  fs::create_directories(output);
  auto file = std::make_unique<File>(output / ".lock", O_CREAT | O_RDWR);
  check(flock(file->fd(), LOCK_EX | LOCK_NB) == 0, "--output {}: another job trains there", output.string());
  return file;
}

std::unique_ptr<File> open_metrics(const fs::path& name, bool fresh) {
  auto file = std::make_unique<File>(name, O_CREAT | O_RDWR | O_APPEND | (fresh ? O_TRUNC : 0));
  std::string last;
  if (fs::is_regular_file(name) && fs::file_size(name) > 0) file->read_at(static_cast<std::int64_t>(fs::file_size(name)) - 1, 1, last);
  if (!last.empty() && last != "\n") file->write("\n");
  return file;
}

bool go_on(Communicator& ranks, Device& device, const TrainCommandOptions& o, const ModelConfig& config, const ParamLayout& layout, const Trainer& trainer, TrainProgress& progress) {
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
  const Tensor vector = trainer.parameters();
  if (checkpoint.parameters.defined()) std::memcpy(vector.raw(), checkpoint.parameters.raw(), vector.bytes());
  ranks.broadcast(vector, 0);
  const Optimizer& optimizer = trainer.optimizer();
  spread_state(ranks, device, optimizer.owners(), checkpoint.m, optimizer.m());
  spread_state(ranks, device, optimizer.owners(), checkpoint.v, optimizer.v());
  return true;
}

}  // namespace kvmesh
