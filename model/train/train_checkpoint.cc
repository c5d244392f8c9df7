#include "model/train/train_checkpoint.h"

#include "model/json_file.h"

#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr const char* state_name = "optimizer.safetensors";
constexpr const char* progress_name = "training.json";

std::string folder_of(std::int64_t step) { return fmt::format("step-{:08}", step); }

/// Whether training gives such a name: of a saved step, or of one that was not finished or is being removed.
bool is_step(std::string name, bool partial) {
  if (partial && name.ends_with(".partial")) name.resize(name.size() - 8);
  return name.starts_with("step-") && name.size() >= 13 && name.size() <= 23 && name.find_first_not_of("0123456789", 5) == std::string::npos;
}

/// The steps of the complete checkpoints, ascending.
std::vector<std::int64_t> saved_steps(const fs::path& output) {
  std::vector<std::int64_t> steps;
  if (!fs::is_directory(output)) return steps;
  for (const auto& entry : fs::directory_iterator(output)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_directory() && !entry.is_symlink() && is_step(name, false)) steps.push_back(std::stoll(name.substr(5)));
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

/// output/name → the step's folder, replaced at once.
void link(const fs::path& output, const std::string& name, std::int64_t step) {
  const fs::path temporary = output / (name + ".new");
  fs::remove(temporary);
  fs::create_directory_symlink(folder_of(step), temporary);
  fs::rename(temporary, output / name);
}

/// Its name goes first, so that half of it is never taken for a checkpoint.
void remove_step(const fs::path& output, std::int64_t step) {
  const fs::path folder = output / folder_of(step), partial = output / (folder_of(step) + ".partial");
  fs::remove_all(partial);
  fs::rename(folder, partial);
  fs::remove_all(partial);
}

/// New names in the folder outlive a crash of the machine.
void sync_folder(const fs::path& folder) {
  const int fd = open(folder.c_str(), O_RDONLY | O_DIRECTORY);
  const bool done = fd >= 0 && fsync(fd) == 0;
  if (fd >= 0) close(fd);
  if (!done) fail(Fault::io, "{}: cannot be written", folder.string());
}

void link_all(const fs::path& output, const TrainProgress& progress) {
  link(output, "last", progress.step);
  if (progress.best_step > 0 && fs::exists(output / folder_of(progress.best_step))) link(output, "best", progress.best_step);
  sync_folder(output);
}

TrainProgress read_progress(const fs::path& file) { return parse_progress(read_file(file, 1 << 24), file.string()); }

}  // namespace

std::string to_json(const TrainProgress& p) {
  nlohmann::ordered_json json = {{"step", p.step},
                                 {"tokens", p.tokens},
                                 {"cursor", {{"epoch", p.cursor.epoch}, {"shard", p.cursor.shard}, {"row", p.cursor.row}}},
                                 {"loss", p.loss},
                                 {"best_train_loss", p.best_train_loss},
                                 {"best_train_step", p.best_train_step},
                                 {"best_loss", p.best_loss},
                                 {"best_step", p.best_step},
                                 {"options", nlohmann::ordered_json::parse(p.options)}};
  return json.dump(2) + "\n";
}

TrainProgress parse_progress(const std::string& text, const std::string& source) {
  try {
    const auto json = nlohmann::ordered_json::parse(text);
    TrainProgress p;
    json.at("step").get_to(p.step);
    json.at("tokens").get_to(p.tokens);
    json.at("cursor").at("epoch").get_to(p.cursor.epoch);
    json.at("cursor").at("shard").get_to(p.cursor.shard);
    json.at("cursor").at("row").get_to(p.cursor.row);
    json.at("loss").get_to(p.loss);
    json.at("best_train_loss").get_to(p.best_train_loss);
    json.at("best_train_step").get_to(p.best_train_step);
    json.at("best_loss").get_to(p.best_loss);
    json.at("best_step").get_to(p.best_step);
    p.options = json.at("options").dump();
    return p;
  } catch (const nlohmann::json::exception& e) {
    fail(Fault::usage, "{}: {}", source, e.what());
  }
}

TrainSaver::TrainSaver(fs::path output, ModelConfig config, fs::path tokenizer, std::int64_t keep)
    : output_(std::move(output)), tokenizer_(std::move(tokenizer)), config_(std::move(config)), keep_(keep) {}

void TrainSaver::wait() {
  if (writing_.valid()) writing_.get();
}

void TrainSaver::save(const ParamLayout& layout, const TrainCheckpoint& checkpoint) {
  wait();
  std::vector<NamedTensor> weights = named_tensors(config_, layout, checkpoint.parameters, config_.dtype), state;
  const auto add = [&](const Tensor& vector, const std::string& prefix) {
    for (NamedTensor& tensor : named_tensors(config_, layout, vector, DType::f32, prefix)) state.push_back(std::move(tensor));
  };
  if (config_.dtype != DType::f32) add(checkpoint.parameters, "parameter.");
  add(checkpoint.m, "m.");
  add(checkpoint.v, "v.");
  writing_ = std::async(std::launch::async, [this, weights = std::move(weights), state = std::move(state), progress = checkpoint.progress] {
    const fs::path folder = output_ / folder_of(progress.step);
    try {
      fs::create_directories(output_);
      save_checkpoint(folder, config_, weights, tokenizer_, std::size_t{5} << 30, [&](const fs::path& partial) {
        write_safetensors(partial / state_name, state);
        write_file(partial / progress_name, to_json(progress));
      });
      link_all(output_, progress);
      const std::vector<std::int64_t> steps = saved_steps(output_);
      for (std::size_t i = 0; i + static_cast<std::size_t>(keep_) < steps.size(); ++i) {
        if (steps[i] != progress.best_step) remove_step(output_, steps[i]);
      }
    } catch (const fs::filesystem_error& e) {
      fail(Fault::io, "{}: cannot be written: {}", folder.string(), e.code().message());
    }
  });
}

std::optional<TrainProgress> find_progress(const fs::path& output) {
  const std::vector<std::int64_t> steps = saved_steps(output);
  if (steps.empty()) return std::nullopt;
  return read_progress(output / folder_of(steps.back()) / progress_name);
}

TrainCheckpoint read_train_checkpoint(const fs::path& output, const ModelConfig& config, const ParamLayout& layout) {
  const fs::path folder = output / folder_of(saved_steps(output).back());
  TrainCheckpoint checkpoint{.progress = read_progress(folder / progress_name), .parameters = {}, .m = {}, .v = {}};
  for (Tensor* vector : {&checkpoint.parameters, &checkpoint.m, &checkpoint.v}) *vector = host_tensor(DType::f32, {layout.size});
  const SafetensorsFile state(folder / state_name);
  read_vector(state, "m.", layout, checkpoint.m);
  read_vector(state, "v.", layout, checkpoint.v);
  if (config.dtype == DType::f32) read_parameters(folder, config, layout, checkpoint.parameters);
  else read_vector(state, "parameter.", layout, checkpoint.parameters);
  return checkpoint;
}

void clean_output(const fs::path& output, bool all) {
  if (!fs::is_directory(output)) return;
  std::vector<fs::path> leftovers;
  for (const auto& entry : fs::directory_iterator(output)) {
    const std::string name = entry.path().filename().string();
    if (name == "last.new" || name == "best.new" || (is_step(name, true) && !is_step(name, false)) || (all && (name == "last" || name == "best"))) leftovers.push_back(entry.path());
  }
  for (const fs::path& path : leftovers) fs::remove_all(path);
  if (all) {
    for (const std::int64_t step : saved_steps(output)) remove_step(output, step);
  } else if (const std::optional<TrainProgress> progress = find_progress(output)) {
    link_all(output, *progress);
  }
}

}  // namespace kvmesh
