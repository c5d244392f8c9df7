// A checkpoint folder: config, weights (packed once a host, shared by its ranks), tokenizer.
#pragma once

#include "comm/process_group.h"
#include "model/config.h"
#include "model/tokenizer.h"
#include "runtime/device.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace kvmesh {

/// A parameter's name, shape and logical axes, as the checkpoint has it.
struct ParamSpec {
  std::string name;                       // e.g. "blocks.3.attn.wq"
  Shape shape;                            // e.g. [D, H, h]
  std::vector<std::string> logical_axes;  // e.g. "qkv_embed", "q_heads", "head_dim"; see comm/sharding.h
};

/// All parameters of a model, in the checkpoint's order.
std::vector<ParamSpec> param_specs(const ModelConfig& config);

/// The weights as the forward pass reads them, on the device.
struct GptWeights {
  struct Block {
    Weight qkv;  // [D, (H + 2·K)·h]: query, key, value heads side by side
    Weight wo;   // [H·h, D]
    Weight fc1;  // [D, 4·D]
    Weight fc2;  // [4·D, D]
  };
  Tensor embed;  // [V, D]
  std::vector<Block> blocks;
  Weight lm_head;  // [D, V]
};

/// Maps model.safetensors (or the shards that model.safetensors.index.json names), checks every tensor's name, shape and dtype,
/// converts to `dtype`, packs for `device`. Collective over the host's ranks: its first rank reads and packs, all share the
/// memory. An Error names file and tensor.
GptWeights load_weights(const std::filesystem::path& folder, const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group);

/// The folder's tokenizer with the config's special tokens, or none if there is no tokenizer.tiktoken.
std::optional<Tokenizer> load_tokenizer(const std::filesystem::path& folder, const ModelConfig& config);

}  // namespace kvmesh
