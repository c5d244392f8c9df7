// The command line and INI files: one description of every option, the command line wins.
#pragma once

#include "model/generate.h"
#include "model/train/data.h"
#include "model/train/optimizer.h"

#include <ctime>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

constexpr std::int64_t auto_batch = -1;

/// Options of every command that computes on a mesh.
struct MeshOptions {
  std::filesystem::path checkpoint, prompts, output;  ///< output: empty or "-" is standard output
  std::string device = "auto", attention = "auto", dtype = "auto", quantize = "none", mesh;
  std::int64_t context = 0;      ///< tokens that a row may have and the cache holds of it; 0: the model's seqlen
  std::int64_t batch_size = 32;  ///< auto_batch: as many rows as fit; settle_batch (job/checkup.h) finds out how many
  int threads = 0;
  double comm_timeout = 60;
  bool share_gpus = false;
  std::string load = "read";  ///< or broadcast: only the first host reads the weights
  std::string pack_cache;  ///< folder; empty: none; "beside": in the checkpoint's folder
};

/// What a row may override, with the command's values.
struct RowDefaults {
  std::int64_t max_new_tokens = 64;
  float temperature = 0, top_p = 1, min_p = 0;
  std::int32_t top_k = 0;
  std::vector<std::string> stop;
  std::vector<std::int32_t> stop_tokens;
  bool ignore_eos = false;
};

/// How rows become prompts by a chat template.
struct ChatOptions {
  bool on = false;
  std::filesystem::path file;         ///< empty: the checkpoint's template
  std::optional<std::string> system;  ///< the message before rows that have none of the system's
  std::string day;                    ///< YYYY-MM-DD, which strftime_now tells; empty: today
};

/// Midnight of a day written YYYY-MM-DD; nothing if it is none.
std::optional<std::tm> day_of(const std::string& text);

/// What a job tells of itself while it runs.
struct MetricsOptions {
  std::filesystem::path file, prometheus;  ///< empty: none
  double interval = 10;                    ///< seconds
  std::filesystem::path trace;             ///< empty: none
};

struct GenerateCommandOptions {
  MeshOptions mesh;
  MetricsOptions metrics;
  std::vector<std::string> prompt;  ///< --prompt, instead of --prompts
  RowDefaults row;
  ChatOptions chat;
  GenerateOptions generate;
  bool fresh = false;
};

/// nullopt after --help, which has been printed if `speak`. An Error names the option.
std::optional<GenerateCommandOptions> parse_generate_options(std::span<const std::string> args, bool speak, std::string_view command = "generate");

struct ScoreOptions {
  MeshOptions mesh;
  ChatOptions chat;
};
std::optional<ScoreOptions> parse_score_options(std::span<const std::string> args, bool speak);

struct VerifyOptions {
  MeshOptions mesh;  ///< checkpoint, prompts empty and device, dtype "auto": as when the output was made
  double fraction = 1;
  std::uint32_t seed = 0;
  std::filesystem::path chat_template;  ///< empty: where it was
};
std::optional<VerifyOptions> parse_verify_options(std::span<const std::string> args, bool speak);

struct BenchOptions {
  MeshOptions mesh;
  std::optional<ModelConfig> shape;  ///< instead of a checkpoint: random weights
  std::int64_t prompt_len = 128, new_tokens = 32, repeat = 3;
  bool run_ahead = true;             ///< GenerateOptions'
  bool ops = false, sampler = false, load = false, collectives = false;  ///< --parts: measured as well
  std::filesystem::path json;
};
std::optional<BenchOptions> parse_bench_options(std::span<const std::string> args, bool speak);

struct ScaleOptions {
  MeshOptions mesh;  ///< batch_size: all rows of the strong runs
  std::optional<ModelConfig> shape;
  std::vector<int> ranks;         ///< ascending, the first is 1
  std::int64_t rows_per_rank = 0; ///< of the weak runs
  std::int64_t prompt_len = 64, new_tokens = 64, repeat = 5;
  std::filesystem::path report;   ///< the folder
};
std::optional<ScaleOptions> parse_scale_options(std::span<const std::string> args, bool speak, int ranks);

struct TokenizeOptions {
  std::filesystem::path tokenizer;
  bool decode = false;
  std::string shards;                       ///< PREFIX of their names; empty: lists of ids to standard output
  std::int64_t shard_tokens = 100'000'000;  ///< of each, but for one longer document
};
std::optional<TokenizeOptions> parse_tokenize_options(std::span<const std::string> args);

struct ProgressOptions {
  std::filesystem::path file;
  bool rows = false;
};
std::optional<ProgressOptions> parse_progress_options(std::span<const std::string> args);

struct TrainCommandOptions {
  MeshOptions mesh;  ///< checkpoint: where the model begins; output: the folder of what is saved
  std::string data, validation;
  std::string init = "weights";  ///< or original, copying
  std::int32_t end_of_text = -1;  ///< -1: the tokenizer's
  OptimizerOptions optimizer;
  DataOptions rows;               ///< but for files, seqlen, vocab_size and end_of_text
  std::int64_t batch_rows = 8, micro_rows = 8;
  std::int64_t save_every = 0, keep = 3, validate_every = 0, patience = 0;  ///< in steps; 0: only at the end, or never
  std::vector<std::string> samples;  ///< texts that the model goes on with
  std::int64_t sample_every = 0, sample_tokens = 64;
  float sample_temperature = 0;
  std::filesystem::path metrics;
  bool library_sum = false;          ///< TrainerOptions'
  bool recompute = false, no_peak = false, fresh = false;
};
std::optional<TrainCommandOptions> parse_train_options(std::span<const std::string> args, bool speak);

/// Checkpoint, batch_size, dtype, and for the drift quantize (else "none"), prompts, device, context and threads.
std::optional<MeshOptions> parse_inspect_options(std::span<const std::string> args, bool speak);
/// Whether inspect is asked for the drift, which computes, on a mesh like the other commands that do.
bool inspect_quantizes(std::span<const std::string> args);

}  // namespace kvmesh
