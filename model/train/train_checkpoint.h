// What training leaves on disk, and begins from: a folder OUTPUT with one folder a saved step, which is a checkpoint as generate reads it,
// with the optimizer's state beside the weights. OUTPUT/last and OUTPUT/best are links to the newest and to the one with the lowest validation loss.
#pragma once

#include "model/config.h"
#include "model/train/data.h"
#include "model/train/parameters.h"

#include <cstdint>
#include <filesystem>
#include <future>
#include <optional>
#include <string>

namespace kvmesh {

/// How far training is: training.json.
struct TrainProgress {
  std::int64_t step = 0;  ///< steps that are done
  std::int64_t tokens = 0;
  DataCursor cursor;
  double loss = 0;                             ///< of the last step
  double best_train_loss = 1e30;               ///< of any step, and when
  std::int64_t best_train_step = 0;
  double best_loss = 1e30;                     ///< on validation rows; 1e30: not validated yet
  std::int64_t best_step = 0;
  std::string options;                         ///< JSON: what must be the same to go on
  bool operator==(const TrainProgress&) const = default;
};

std::string to_json(const TrainProgress& progress);
/// An Error names `source`.
TrainProgress parse_progress(const std::string& json, const std::string& source);

struct TrainCheckpoint {
  TrainProgress progress;
  Tensor parameters, m, v;  // f32 [layout.size]; m and v are the optimizer's
};

/// Writes checkpoints behind the back of the steps, on a thread of its own. For one rank.
class TrainSaver {
 public:
  /// `tokenizer`, if not empty, goes into each folder. Keeps the newest `keep`, and the best.
  TrainSaver(std::filesystem::path output, ModelConfig config, std::filesystem::path tokenizer, std::int64_t keep);

  /// Copies what it is given and begins to write OUTPUT/step-00000N; waits for the one before.
  void save(const ParamLayout& layout, const TrainCheckpoint& checkpoint);
  /// Returns when everything is on disk; what went wrong is thrown here and in save: an Error (Fault::io) that names the file.
  void wait();

 private:
  std::filesystem::path output_, tokenizer_;
  ModelConfig config_;
  std::int64_t keep_;
  std::future<void> writing_;
};

/// How far the newest complete checkpoint of `output` is; nothing if there is none.
std::optional<TrainProgress> find_progress(const std::filesystem::path& output);
/// That checkpoint itself. An Error names the file and what is wrong with it.
TrainCheckpoint read_train_checkpoint(const std::filesystem::path& output, const ModelConfig& config, const ParamLayout& layout);

/// Removes what an interrupted save has left, or with `all` every saved step; the links then mean what they should.
void clean_output(const std::filesystem::path& output, bool all);

}  // namespace kvmesh
