// The parameters of a model: what a checkpoint calls its tensors, their shapes, and which of them the forward pass reads together.
#pragma once

#include "model/config.h"
#include "runtime/tensor.h"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvmesh {

/// A parameter's name, shape and logical axes, as the checkpoint has it.
struct ParamSpec {
  std::string name;                       // e.g. "blocks.3.attn.wq"
  Shape shape;                            // e.g. [D, H, h]
  std::vector<std::string> logical_axes;  // e.g. "qkv_embed", "q_heads", "head_dim"; see comm/sharding.h
};

/// Parameters that the forward pass reads as one matrix [k, n] or vector [n] (k = 1), their columns side by side.
struct ParamGroup {
  enum class Kind { embed, positions, attn_norm, attn_norm_bias, qkv, qkv_bias, q_norm, k_norm, wo, wo_bias, mlp_norm, mlp_norm_bias, fc1, fc1_bias, fc2, fc2_bias, norm, norm_bias, lm_head };
  Kind kind;
  std::int64_t layer;  ///< 0 for what is outside the blocks
  std::vector<ParamSpec> params;
  bool transposed;     ///< the checkpoint has the parameters as [columns, k]
  std::int64_t k, n;

  bool is_matrix() const;  ///< of a product: packed for the device
  bool is_table() const;   ///< rows that are looked up
};

/// In the order of the forward pass. A tied head's group has the embedding's parameter once more.
std::vector<ParamGroup> param_groups(const ModelConfig& config);

/// All parameters of a model, in the checkpoint's order, each once.
std::vector<ParamSpec> param_specs(const ModelConfig& config);

/// Tensors that must be there and be copies of parameters, with the parameter's name: the second matrix of a gated MLP that is computed as relu(z)².
std::vector<std::pair<std::string, std::string>> param_copies(const ModelConfig& config);

/// What names begin with that folders of the family have with or without it ("transformer.", "model."); empty: nothing.
std::string_view optional_prefix(const ModelConfig& config);

/// Whether a tensor of that name belongs to no parameter but is known to be there at times: buffers of older files, a copy of a tied matrix.
bool is_passed_over(const ModelConfig& config, std::string_view name);

}  // namespace kvmesh
