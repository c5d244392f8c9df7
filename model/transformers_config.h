// A model's shape from a config.json as transformers writes it.
#pragma once

#include "model/config.h"

#include <nlohmann/json.hpp>

namespace kvmesh {

/// Families: gpt2, llama (1 to 3, SmolLM and SmolLM2), mistral, smollm3, qwen2, qwen3, nanochat. `file` is the object's; a generation_config.json beside
/// it is read too. An Error names the file and the key that asks for what kvmesh does not have or know; keys that only concern training or
/// transformers itself are passed over. float16 becomes float32, which holds it exactly.
ModelConfig transformers_config(nlohmann::json object, const std::filesystem::path& file);

/// For to_json: what such a config has beyond the contract's keys.
void describe_family(const ModelConfig& config, nlohmann::ordered_json& j);

}  // namespace kvmesh
