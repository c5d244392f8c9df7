// kvmesh inspect and --version: what is in a checkpoint, and what integers would make of it; what is in this program.
#include "launch/commands.h"

#include "comm/nccl.h"
#include "comm/process_group.h"
#include "launch/job/agree.h"
#include "launch/job/job.h"
#include "launch/job/line_source.h"
#include "launch/job/rows.h"
#include "launch/version.h"
#include "model/checkpoint.h"
#include "model/drift.h"
#include "model/memory.h"
#include "model/safetensors.h"
#include "runtime/cpu/isa.h"
#include "runtime/device.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace kvmesh {

namespace {

void print_checkpoint(const MeshOptions& o) {
  const std::filesystem::path& folder = o.checkpoint;
  const ModelConfig config = with_context(read_config(folder / "config.json"), o);
  const SafetensorsFolder files(folder);
  const std::vector<SafetensorsFolder::Entry> entries = find_params(files, config);
  const auto tokenizer = load_tokenizer(folder, config);
  std::size_t width = 28;
  for (const auto& [file, tensor] : entries) width = std::max(width, tensor->name.size());
  fmt::print("{}\n{:<{}} {:<9} {:<18} {:>14}  {}\n", to_json(config), "tensor", width, "dtype", "shape", "bytes", "file");
  std::int64_t parameters = 0;
  std::size_t bytes = 0;
  for (const auto& [file, tensor] : entries) {
    fmt::print("{:<{}} {:<9} {:<18} {:>14}  {}\n", tensor->name, width, name_of(tensor->dtype), to_string(tensor->shape), tensor->bytes, file->path().filename().string());
    parameters += tensor->shape.numel();
    bytes += tensor->bytes;
  }
  const DType dtype = dtype_of(o, config);
  const std::size_t cache = static_cast<std::size_t>(2 * config.num_layers * config.kv_heads * config.seqlen * config.head_dim()) * size_of(dtype);
  const Quantize quantize = quantize_of(o);
  const MemoryNeeds needs = memory_needs(config, dtype, *make_device("cpu", {.threads = 1}), false, quantize);
  fmt::print("\nfamily: {}\nparameters: {}\nbytes: {}\nKV cache: {} bytes a row of {} tokens\n", config.family, parameters, bytes, cache, config.seqlen);
  fmt::print("memory of one rank with {} rows in flight, in {}{}: {}: {} for weights, {} for activations, {} for each row\n", o.batch_size, name_of(dtype), quantize == Quantize::none ? "" : " with int8 matrices",
             readable_bytes(needs.bytes(o.batch_size, o.batch_size)), readable_bytes(needs.weights), readable_bytes(needs.activations), readable_bytes(needs.row));
  const RowDefaults defaults;
  const RowContext context{defaults, config, tokenizer ? &*tokenizer : nullptr};
  fmt::print("tokenizer: {}\nends of text: {}\npad: {}\n", tokenizer ? fmt::format("{} ids", tokenizer->vocab_size()) : "none", fmt::join(context.stop_ids(), ", "), context.pad());
}

/// The prompts' tokens, those that have at least two, or random ones.
std::vector<std::vector<std::int32_t>> sequences_of(const MeshOptions& o, const Job& job, Communicator& ranks) {
  constexpr std::int64_t count = 8, tokens = 128;
  constexpr std::uint32_t seed = 0;
  if (o.prompts.empty()) return random_sequences(count, std::min(tokens, job.config.seqlen), job.config.vocab_size, seed);
  const RowDefaults defaults;
  const RowContext context{defaults, job.config, job.tokenizer ? &*job.tokenizer : nullptr};
  std::vector<std::vector<std::int32_t>> sequences;
  LineSource lines(ranks, o.prompts);
  for (std::int64_t index = 0; const std::optional<std::string_view> line = lines.next(); ++index) {
    const InputRow row = parse_row(*line, index, context);
    check(row.text.error.empty(), "--prompts {}: row {}: {}", o.prompts.string(), index, row.text.error);
    if (row.row.prompt->size() >= 2) sequences.push_back(*row.row.prompt);
  }
  check(!sequences.empty(), "--prompts {}: no row has two tokens, of which the first could predict the second", o.prompts.string());
  return sequences;
}

}  // namespace

int inspect_command(std::span<const std::string> args) {
  const std::optional<MeshOptions> o = parse_inspect_options(args, true);
  if (o) print_checkpoint(*o);
  return 0;
}

// Every rank does the same, for there is one to tell.
int drift_command(std::span<const std::string> args, ProcessGroup& group) {
  const std::optional<MeshOptions> o = parse_inspect_options(args, group.rank() == 0);
  if (!o) return 0;
  Communicator& ranks = group.world();
  on_first_rank(ranks, [&] { print_checkpoint(*o); });
  const Job job(*o, group);
  const std::vector<std::vector<std::int32_t>> sequences = sequences_of(*o, job, ranks);
  const auto load = [&](Quantize quantize) {
    return Gpt(job.config, job.dtype, load_weights(o->checkpoint, job.config, job.dtype, *job.device, group, {job.threads, {}, {}, quantize}), *job.device);
  };
  const Drift drift = drift_between(load(Quantize::none), load(Quantize::int8), sequences);
  const std::size_t whole = weights_bytes(job.config, job.dtype, *job.device), small = weights_bytes(job.config, job.dtype, *job.device, Quantize::int8);
  on_first_rank(ranks, [&] {
    fmt::print("\nquantized to int8, beside {} on {}:\n  weights in memory: {} bytes instead of {}, {:.3f} of them\n", name_of(job.dtype), job.device->describe(), small, whole,
               static_cast<double>(small) / static_cast<double>(whole));
    fmt::print("  {} tokens of {} {}: |difference of log-probability| mean {:.3g}, at most {:.3g}; KL divergence {:.3g} nats; the same most probable token {:.2f} %\n", drift.tokens,
               sequences.size(), o->prompts.empty() ? "random sequences" : "prompts", drift.mean, drift.most, drift.divergence, 100 * drift.same_top);
  });
  return 0;
}

int version_command() {
  using namespace cpu;
  const std::span usable(isa_names, static_cast<std::size_t>(best_isa()) + 1);
  fmt::print("kvmesh {} (build {})\nMPI: {}\nNCCL: {}\ncuDNN: {}\nCUDA: {}\nCPU instruction sets: {} (compiled in: {})\n",
             version_text(), build_text(), mpi_version(), nccl_version(), cudnn_versions(), cuda_versions(), fmt::join(usable, ", "), fmt::join(isa_names, ", "));
  return 0;
}

}  // namespace kvmesh
