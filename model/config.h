// The model's shape: config.json of a checkpoint folder (contract, section 1).
#pragma once

#include "runtime/dtype.h"

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

struct ModelConfig {
  std::int64_t seqlen = 0;      ///< context length = capacity of the KV cache in tokens
  std::int64_t vocab_size = 0;
  std::int64_t d_emb = 0;
  std::int64_t num_layers = 0;
  std::int64_t q_heads = 0, kv_heads = 0;
  DType dtype = DType::bf16;    ///< bf16 or f32
  double rope_theta = 10000;
  double norm_eps = 1e-5;
  double logit_soft_cap = 15;   ///< 0: none
  std::string window_pattern = "L";
  std::int64_t local_window_size = 0;
  bool nope_global_attn = true;
  std::map<std::string, std::int32_t> special_tokens;  ///< as config.json has them; empty if it has none
  bool has_special_tokens = false;                     ///< whether config.json has the key

  std::int64_t head_dim() const { return d_emb / q_heads; }

  /// How layer i attends: window < 0 is full attention; see the contract's window_pattern.
  struct Layer {
    std::int64_t window = -1;
    bool rope = true;
  };
  std::vector<Layer> layers() const;
};

/// Reads and checks; an Error names the file and the key.
ModelConfig read_config(const std::filesystem::path& file);
/// The same from the text itself; `source` says where it came from.
ModelConfig parse_config(std::string_view text, const std::string& source);
/// The JSON text that read_config reads back to the same config.
std::string to_json(const ModelConfig& config);

}  // namespace kvmesh
