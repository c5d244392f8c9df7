// Names and shapes: the contract's, and those of transformers' families.
#include "model/param_spec.h"

#include "runtime/check.h"

#include <set>

namespace kvmesh {
namespace {

using Kind = ParamGroup::Kind;

/// What a family calls its parameters; in a block behind `block`. Biases and norms' weights are at the end of the matrix's or norm's name.
struct Names {
  const char* prefix;
  const char* embed;
  const char* positions;
  const char* block;
  const char* attn_norm;
  std::vector<const char*> qkv;  ///< one: it holds all three
  const char* q_norm;
  const char* k_norm;
  const char* wo;
  const char* mlp_norm;
  std::vector<const char*> fc1;
  const char* fc2;
  const char* norm;
  const char* lm_head;
  bool transposed;
};

const Names gpt2 = {"transformer.", "wte", "wpe", "h.", "ln_1", {"attn.c_attn"}, "", "", "attn.c_proj", "ln_2", {"mlp.c_fc"}, "mlp.c_proj", "ln_f", "lm_head", false};
const Names llama = {"model.", "embed_tokens", "", "layers.", "input_layernorm", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, "self_attn.q_norm", "self_attn.k_norm",
                     "self_attn.o_proj", "post_attention_layernorm", {"mlp.gate_proj", "mlp.up_proj"}, "mlp.down_proj", "norm", "lm_head", true};
const Names nanochat = {"model.", "embed_tokens", "", "layers.", "", {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}, "", "", "self_attn.o_proj", "", {"mlp.fc1"}, "mlp.fc2",
                        "", "lm_head", true};

const Names& names_of(const ModelConfig& config) { return config.family == "gpt2" ? gpt2 : config.family == "nanochat" ? nanochat : llama; }

/// The contract's.
std::vector<ParamGroup> native_groups(const ModelConfig& config) {
  const std::int64_t D = config.d_emb, H = config.q_heads, K = config.kv_heads, h = config.head_dim(), V = config.vocab_size;
  std::vector<ParamGroup> groups;
  groups.push_back({Kind::embed, 0, {{"embed.weight", {V, D}, {"vocab_out", "vocab_in"}}}, false, V, D});
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string block = fmt::format("blocks.{}.", i);
    groups.push_back({Kind::qkv,
                      i,
                      {{block + "attn.wq", {D, H, h}, {"qkv_embed", "q_heads", "head_dim"}},
                       {block + "attn.wk", {D, K, h}, {"qkv_embed", "kv_heads", "head_dim"}},
                       {block + "attn.wv", {D, K, h}, {"qkv_embed", "kv_heads", "head_dim"}}},
                      false, D, (H + 2 * K) * h});
    groups.push_back({Kind::wo, i, {{block + "attn.wo", {H, h, D}, {"o_heads", "head_dim", "o_embed"}}}, false, H * h, D});
    groups.push_back({Kind::fc1, i, {{block + "mlp.fc1.weight", {D, 4 * D}, {"mlp_up_embed", "mlp_up_ffw"}}}, false, D, 4 * D});
    groups.push_back({Kind::fc2, i, {{block + "mlp.fc2.weight", {4 * D, D}, {"mlp_down_ffw", "mlp_down_embed"}}}, false, 4 * D, D});
  }
  groups.push_back({Kind::lm_head, 0, {{"lm_head.weight", {D, V}, {"vocab_in", "vocab_out"}}}, false, D, V});
  return groups;
}

/// Those of one of transformers' families.
std::vector<ParamGroup> family_groups(const ModelConfig& c) {
  const Names& names = names_of(c);
  const std::int64_t D = c.d_emb, q = c.q_heads * c.head_dim(), kv = c.kv_heads * c.head_dim(), V = c.vocab_size, F = c.mlp_width();
  std::vector<ParamGroup> groups;
  std::int64_t layer = 0;
  std::string place = names.prefix;
  const auto vectors = [&](Kind kind, const std::vector<std::string>& called, const std::vector<std::int64_t>& sizes) {
    ParamGroup group{kind, layer, {}, false, 1, 0};
    for (std::size_t i = 0; i < called.size(); ++i) {
      group.params.push_back({place + called[i], {sizes[i]}, {""}});
      group.n += sizes[i];
    }
    groups.push_back(std::move(group));
  };
  // A matrix of parts with `sizes` columns, and its bias.
  const auto matrix = [&](Kind kind, Kind bias_kind, bool bias, const std::vector<const char*>& called, std::int64_t k, const std::vector<std::int64_t>& sizes) {
    ParamGroup group{kind, layer, {}, names.transposed, k, 0};
    std::vector<std::string> biases;
    for (std::size_t i = 0; i < called.size(); ++i) {
      const std::string name = place + called[i] + ".weight";
      group.params.push_back({name, names.transposed ? Shape{sizes[i], k} : Shape{k, sizes[i]}, {"", ""}});
      group.n += sizes[i];
      biases.push_back(std::string(called[i]) + ".bias");
    }
    groups.push_back(std::move(group));
    if (bias) vectors(bias_kind, biases, sizes);
  };
  const auto norm = [&](Kind kind, Kind bias_kind, const char* called) {
    if (c.norm_weights) vectors(kind, {std::string(called) + ".weight"}, {D});
    if (c.norm_weights && c.layer_norm) vectors(bias_kind, {std::string(called) + ".bias"}, {D});
  };

  const ParamSpec embed{place + names.embed + ".weight", {V, D}, {"vocab_out", "vocab_in"}};
  groups.push_back({Kind::embed, 0, {embed}, false, V, D});
  if (const std::int64_t P = c.learned_positions) groups.push_back({Kind::positions, 0, {{place + names.positions + ".weight", {P, D}, {"", "vocab_in"}}}, false, P, D});
  for (; layer < c.num_layers; ++layer) {
    place = fmt::format("{}{}{}.", names.prefix, names.block, layer);
    norm(Kind::attn_norm, Kind::attn_norm_bias, names.attn_norm);
    matrix(Kind::qkv, Kind::qkv_bias, c.qkv_bias, names.qkv, D, names.qkv.size() == 1 ? std::vector{q + 2 * kv} : std::vector{q, kv, kv});
    if (c.head_norms == ModelConfig::HeadNorms::weighted) {
      vectors(Kind::q_norm, {std::string(names.q_norm) + ".weight"}, {c.head_dim()});
      vectors(Kind::k_norm, {std::string(names.k_norm) + ".weight"}, {c.head_dim()});
    }
    matrix(Kind::wo, Kind::wo_bias, c.out_bias, {names.wo}, q, {D});
    norm(Kind::mlp_norm, Kind::mlp_norm_bias, names.mlp_norm);
    const std::size_t parts = c.activation == Activation::swiglu ? 2 : 1;
    matrix(Kind::fc1, Kind::fc1_bias, c.mlp_bias, {names.fc1.begin(), names.fc1.begin() + static_cast<std::ptrdiff_t>(parts)}, D, std::vector<std::int64_t>(parts, F));
    matrix(Kind::fc2, Kind::fc2_bias, c.mlp_bias, {names.fc2}, F, {D});
  }
  layer = 0;
  place = names.prefix;
  norm(Kind::norm, Kind::norm_bias, names.norm);
  groups.push_back({Kind::lm_head, 0, {c.tied_embeddings ? embed : ParamSpec{std::string(names.lm_head) + ".weight", {V, D}, {"vocab_out", "vocab_in"}}}, true, D, V});
  return groups;
}

}  // namespace

bool ParamGroup::is_matrix() const { return kind == Kind::qkv || kind == Kind::wo || kind == Kind::fc1 || kind == Kind::fc2 || kind == Kind::lm_head; }
bool ParamGroup::is_table() const { return kind == Kind::embed || kind == Kind::positions; }

std::vector<ParamGroup> param_groups(const ModelConfig& config) { return config.native() ? native_groups(config) : family_groups(config); }

std::vector<ParamSpec> param_specs(const ModelConfig& config) {
  std::vector<ParamSpec> specs;
  std::set<std::string> names;
  for (const ParamGroup& group : param_groups(config)) {
    for (const ParamSpec& spec : group.params) {
      if (names.insert(spec.name).second) specs.push_back(spec);
    }
  }
  return specs;
}

std::vector<std::pair<std::string, std::string>> param_copies(const ModelConfig& config) {
  std::vector<std::pair<std::string, std::string>> copies;
  const Names& names = names_of(config);
  if (config.native() || names.fc1.size() == 1 || config.activation == Activation::swiglu) return copies;
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const auto name = [&](const char* called) { return fmt::format("{}{}{}.{}.weight", names.prefix, names.block, i, called); };
    copies.emplace_back(name(names.fc1[1]), name(names.fc1[0]));
  }
  return copies;
}

std::string_view optional_prefix(const ModelConfig& config) { return config.native() ? "" : names_of(config).prefix; }

bool is_passed_over(const ModelConfig& config, std::string_view name) {
  if (config.native()) return false;
  if (config.tied_embeddings && name == "lm_head.weight") return true;
  if (config.family == "gpt2") return name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias");
  return name.ends_with(".rotary_emb.inv_freq");
}

}  // namespace kvmesh
