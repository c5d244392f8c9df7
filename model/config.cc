// config.json: every key checked for type and range, so that later products of sizes cannot overflow.
#include "model/config.h"

#include "model/config_keys.h"
#include "model/transformers_config.h"

#include <algorithm>

namespace kvmesh {
ModelConfig read_config(const std::filesystem::path& file) {
  const std::string text = read_file(file, 1 << 20);
  nlohmann::json object = parse_json_object(text, file);
  return object.contains("model_type") ? transformers_config(std::move(object), file) : parse_config(text, file.string());
}

ModelConfig parse_config(std::string_view text, const std::string& source) {
  ConfigKeys keys(parse_json_object(text, source), source);
  ModelConfig c;
  c.seqlen = keys.whole("seqlen", 2, max_seqlen);
  c.vocab_size = keys.whole("vocab_size", 1, max_vocab);
  c.d_emb = keys.whole("d_emb", 2, max_width);
  c.num_layers = keys.whole("num_layers", 1, max_layers);
  c.q_heads = keys.whole("q_heads", 1, max_width);
  c.kv_heads = keys.whole("kv_heads", 1, max_width);
  check(c.d_emb % c.q_heads == 0, "{}: \"d_emb\" {} is no multiple of \"q_heads\" {}", keys.file(), c.d_emb, c.q_heads);
  check(c.head_dim() % 2 == 0, "{}: \"d_emb\" / \"q_heads\" is {}, and RoPE needs an even head size", keys.file(), c.head_dim());
  check(c.q_heads % c.kv_heads == 0, "{}: \"q_heads\" {} is no multiple of \"kv_heads\" {}", keys.file(), c.q_heads, c.kv_heads);

  const std::string dtype = keys.text("dtype", "bfloat16");
  check(dtype == "bfloat16" || dtype == "float32", "{}: \"dtype\" must be \"bfloat16\" or \"float32\", not {}", keys.file(), shown(dtype));
  c.dtype = dtype == "float32" ? DType::f32 : DType::bf16;
  c.rope_theta = keys.real("rope_theta", c.rope_theta, false);
  c.norm_eps = keys.real("norm_eps", c.norm_eps, false);
  const nlohmann::json* cap = keys.find("logit_soft_cap");
  c.logit_soft_cap = cap && cap->is_null() ? 0 : keys.real("logit_soft_cap", c.logit_soft_cap, true);

  c.window_pattern = keys.text("window_pattern", "L");
  check(!c.window_pattern.empty() && c.window_pattern.find_first_not_of("LlSs") == std::string::npos,
        "{}: \"window_pattern\" must be made of L and S, and is {}", keys.file(), shown(c.window_pattern));
  std::replace(c.window_pattern.begin(), c.window_pattern.end(), 'l', 'L');
  std::replace(c.window_pattern.begin(), c.window_pattern.end(), 's', 'S');
  const nlohmann::json* window = keys.find("local_window_size");
  const std::int64_t quarter = c.seqlen / 4;
  c.local_window_size = window && window->is_null() ? quarter : keys.whole("local_window_size", 0, max_seqlen, &quarter);
  c.nope_global_attn = keys.flag("nope_global_attn", true);

  if (const nlohmann::json* special = keys.find("special_tokens")) {
    check(special->is_object(), "{}: \"special_tokens\" must map names to ids", keys.file());
    c.has_special_tokens = true;
    for (const auto& [name, id] : special->items()) {
      check(!name.empty(), "{}: \"special_tokens\" holds an empty name", keys.file());
      // The model never sees the pad id, which may therefore be the first one beyond the vocabulary.
      const std::int64_t most = name == "<|pad|>" ? c.vocab_size : c.vocab_size - 1;
      c.special_tokens[name] = static_cast<std::int32_t>(keys.whole(id, "special_tokens: " + shown(name), 0, most));
    }
  }
  keys.find("attn_type");  // the original's; how q_heads and kv_heads relate says the same
  keys.check_all_known();
  return c;
}

std::string to_json(const ModelConfig& c) {
  nlohmann::ordered_json j = {{"seqlen", c.seqlen},
                              {"vocab_size", c.vocab_size},
                              {"d_emb", c.d_emb},
                              {"num_layers", c.num_layers},
                              {"q_heads", c.q_heads},
                              {"kv_heads", c.kv_heads},
                              {"dtype", name_of(c.dtype)},
                              {"rope_theta", c.rope_theta},
                              {"norm_eps", c.norm_eps},
                              {"logit_soft_cap", c.logit_soft_cap},
                              {"window_pattern", c.window_pattern},
                              {"local_window_size", c.local_window_size},
                              {"nope_global_attn", c.nope_global_attn}};
  if (c.has_special_tokens) j["special_tokens"] = c.special_tokens;
  if (!c.native()) describe_family(c, j);
  return j.dump(2) + "\n";
}

// Source of the rule: compute_layer_configs of the original's nanogpt/model.py.
std::vector<ModelConfig::Layer> ModelConfig::layers() const {
  if (!own_layers.empty()) return own_layers;
  std::vector<Layer> all(static_cast<std::size_t>(num_layers));
  if (window_pattern.find('S') == std::string::npos) return all;
  const bool mixed = window_pattern != "S";
  for (std::size_t i = 0; i < all.size(); ++i) {
    const bool last = i + 1 == all.size();
    if (window_pattern[i % window_pattern.size()] == 'S' && !(mixed && last))
      all[i].window = local_window_size;
    else
      all[i].rope = !nope_global_attn;
  }
  return all;
}

}  // namespace kvmesh
