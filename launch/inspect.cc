// kvmesh inspect and --version: what is in a checkpoint, what is in this program.
#include "launch/commands.h"

#include "comm/nccl.h"
#include "comm/process_group.h"
#include "launch/options.h"
#include "launch/version.h"
#include "model/checkpoint.h"
#include "model/safetensors.h"
#include "runtime/cpu/isa.h"
#include "runtime/device.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace kvmesh {

int inspect_command(std::span<const std::string> args) {
  const std::optional<std::filesystem::path> folder = parse_inspect_options(args);
  if (!folder) return 0;
  const ModelConfig config = read_config(*folder / "config.json");
  const SafetensorsFolder files(*folder);
  const std::vector<SafetensorsFolder::Entry> entries = find_params(files, config);
  fmt::print("{}\n\n{:<28} {:<9} {:<18} {:>14}  {}\n", to_json(config), "tensor", "dtype", "shape", "bytes", "file");
  std::int64_t parameters = 0;
  std::size_t bytes = 0;
  for (const auto& [file, tensor] : entries) {
    fmt::print("{:<28} {:<9} {:<18} {:>14}  {}\n", tensor->name, name_of(tensor->dtype), to_string(tensor->shape), tensor->bytes, file->path().filename().string());
    parameters += tensor->shape.numel();
    bytes += tensor->bytes;
  }
  const std::size_t cache = static_cast<std::size_t>(2 * config.num_layers * config.kv_heads * config.seqlen * config.head_dim()) * size_of(config.dtype);
  fmt::print("\nparameters: {}\nbytes: {}\nKV cache: {} bytes a row of {} tokens\n", parameters, bytes, cache, config.seqlen);
  const auto tokenizer = load_tokenizer(*folder, config);
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
