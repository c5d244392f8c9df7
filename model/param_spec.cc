// The parameters of a model: names and shapes of the contract, logical axes of the original's config.
#include "model/checkpoint.h"

namespace kvmesh {

std::vector<ParamSpec> param_specs(const ModelConfig& config) {
  const std::int64_t D = config.d_emb, H = config.q_heads, K = config.kv_heads, h = config.head_dim(), V = config.vocab_size;
  std::vector<ParamSpec> specs;
  specs.push_back({"embed.weight", {V, D}, {"vocab_out", "vocab_in"}});
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string block = fmt::format("blocks.{}.", i);
    specs.push_back({block + "attn.wq", {D, H, h}, {"qkv_embed", "q_heads", "head_dim"}});
    specs.push_back({block + "attn.wk", {D, K, h}, {"qkv_embed", "kv_heads", "head_dim"}});
    specs.push_back({block + "attn.wv", {D, K, h}, {"qkv_embed", "kv_heads", "head_dim"}});
    specs.push_back({block + "attn.wo", {H, h, D}, {"o_heads", "head_dim", "o_embed"}});
    specs.push_back({block + "mlp.fc1.weight", {D, 4 * D}, {"mlp_up_embed", "mlp_up_ffw"}});
    specs.push_back({block + "mlp.fc2.weight", {4 * D, D}, {"mlp_down_ffw", "mlp_down_embed"}});
  }
  specs.push_back({"lm_head.weight", {D, V}, {"vocab_in", "vocab_out"}});
  return specs;
}

}  // namespace kvmesh
