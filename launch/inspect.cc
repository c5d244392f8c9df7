// kvmesh inspect and --version: what is in a checkpoint, what is in this program.
#include "launch/commands.h"

#include "comm/nccl.h"
#include "comm/process_group.h"
#include "launch/options.h"
#include "launch/version.h"
#include "model/checkpoint.h"
#include "model/memory.h"
#include "model/safetensors.h"
#include "runtime/cpu/isa.h"
#include "runtime/device.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace kvmesh {

int inspect_command(std::span<const std::string> args) {
  const std::optional<InspectOptions> parsed = parse_inspect_options(args);
  if (!parsed) return 0;
  const std::filesystem::path& folder = parsed->checkpoint;
  const ModelConfig config = read_config(folder / "config.json");
  const SafetensorsFolder files(folder);
  const std::vector<SafetensorsFolder::Entry> entries = find_params(files, config);
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
  const std::size_t cache = static_cast<std::size_t>(2 * config.num_layers * config.kv_heads * config.seqlen * config.head_dim()) * size_of(config.dtype);
  const MemoryNeeds needs = memory_needs(config, config.dtype, *make_device("cpu", {.threads = 1}), false);
  fmt::print("\nfamily: {}\nparameters: {}\nbytes: {}\nKV cache: {} bytes a row of {} tokens\n", config.family, parameters, bytes, cache, config.seqlen);
  fmt::print("memory of one rank with {} rows in flight, in {}: {}: {} for weights, {} for activations, {} for each row\n", parsed->batch_size, name_of(config.dtype),
             readable_bytes(needs.bytes(parsed->batch_size, parsed->batch_size)), readable_bytes(needs.weights), readable_bytes(needs.activations), readable_bytes(needs.row));
  const auto tokenizer = load_tokenizer(folder, config);
  fmt::print("tokenizer: {}\n", tokenizer ? fmt::format("{} ids, <|endoftext|> {}, <|pad|> {}", tokenizer->vocab_size(), tokenizer->end_of_text(), tokenizer->pad()) : "none");
  return 0;
}

int version_command() {
  using namespace cpu;
  const std::span usable(isa_names, static_cast<std::size_t>(best_isa()) + 1);
  fmt::print("kvmesh {} (build {})\nMPI: {}\nNCCL: {}\ncuDNN: not compiled in\nCUDA: {}\nCPU instruction sets: {} (compiled in: {})\n",
             version_text(), build_text(), mpi_version(), nccl_version(), cuda_versions(), fmt::join(usable, ", "), fmt::join(isa_names, ", "));
  return 0;
}

}  // namespace kvmesh
