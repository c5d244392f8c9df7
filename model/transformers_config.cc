// transformers' config.json: which keys mean what, family by family; what is not understood is refused by name.
#include "model/transformers_config.h"

#include "model/config_keys.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <string_view>

namespace kvmesh {
namespace {

using nlohmann::json;

// What a file does not say is the default of transformers' class for the family; null is a value of its own there, mostly "none".

/// Keys that say nothing about what a trained model computes for a text.
constexpr std::array passed_over = {
    "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range", "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
    "hidden_dropout", "residual_dropout", "pretraining_tp", "output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate", "task_specific_params", "problem_type",
    "id2label", "label2id", "num_labels", "finetuning_task", "chunk_size_feed_forward", "reorder_and_upcast_attn", "summary_type", "summary_use_proj", "summary_activation",
    "summary_proj_to_labels", "summary_first_dropout", "n_ctx", "n_special", "predict_special_tokens", "output_past", "max_sequence_length", "gradient_checkpointing", "tokenizer_class", "prefix", "torchscript", "use_bfloat16", "tf_legacy_loss", "is_llama_config", "attn_implementation", "transformers.js_config", "unsloth_fixed", "unsloth_version", "pad_token_id", "bos_token_id", "eos_token_id"};

/// Names of RopeScaling::Kind.
constexpr std::string_view scalings[] = {"default", "linear", "llama3", "yarn"};

/// Of a key that a list of layers may carry: one entry a layer.
const json* layer_list(ConfigKeys& keys, const char* key, std::int64_t layers) {
  const json* list = keys.find(key);
  check(!list || (list->is_array() && std::ssize(*list) >= layers), "{}: \"{}\" must be a list with an entry for each of {} layers", keys.file(), key, layers);
  return list;
}

Activation activation_of(ConfigKeys& keys, const char* key, const char* fallback, std::initializer_list<std::pair<std::string_view, Activation>> known) {
  const std::string name = keys.text(key, fallback);
  for (const auto& [text, activation] : known) {
    if (name == text) return activation;
  }
  keys.refuse(fmt::format("\"{}\" is {}, which kvmesh does not have for this model_type", key, shown(name)));
  return known.begin()->second;
}

void need(ConfigKeys& keys, std::initializer_list<const char*> all) {
  for (const char* key : all) check(keys.find(key) != nullptr, "{}: the key \"{}\" is missing", keys.file(), key);
}

void read_llama3(ConfigKeys& rope, RopeScaling& s) {
  need(rope, {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"});
  s.low_freq_factor = rope.real("low_freq_factor", 1, false);
  s.high_freq_factor = rope.real("high_freq_factor", 4, false);
  s.original_positions = rope.whole("original_max_position_embeddings", 1, max_seqlen);
  check(s.high_freq_factor > s.low_freq_factor, "{}: \"high_freq_factor\" {} is not above \"low_freq_factor\" {}", rope.file(), s.high_freq_factor, s.low_freq_factor);
}

/// The context becomes what the frequencies are stretched to: people add yarn to a config.json and leave its max_position_embeddings as it was.
void read_yarn(ConfigKeys& rope, RopeScaling& s, ModelConfig& c) {
  s.original_positions = rope.whole("original_max_position_embeddings", 1, max_seqlen, &c.seqlen);
  c.seqlen = std::max(c.seqlen, static_cast<std::int64_t>(std::min(s.factor * static_cast<double>(s.original_positions), static_cast<double>(max_seqlen))));
  s.beta_fast = rope.real("beta_fast", s.beta_fast, false);
  s.beta_slow = rope.real("beta_slow", s.beta_slow, false);
  check(s.beta_fast >= s.beta_slow, "{}: \"beta_fast\" {} is below \"beta_slow\" {}", rope.file(), s.beta_fast, s.beta_slow);
  check(c.rope_theta != 1, "{}: yarn has no \"rope_theta\" of 1", rope.file());
  s.truncate = rope.flag("truncate", true);
  const double of_values = rope.real("mscale", 0, true), of_all = rope.real("mscale_all_dim", 0, true);
  const auto grown = [&](double scale) { return s.factor <= 1 ? 1.0 : 0.1 * scale * std::log(s.factor) + 1; };
  s.magnitude = rope.real("attention_factor", of_values > 0 && of_all > 0 ? grown(of_values) / grown(of_all) : grown(1), false);
}

/// "rope_parameters", or in older files "rope_theta" and "rope_scaling". The context is known.
void read_rope(ConfigKeys& keys, ModelConfig& c, double theta) {
  c.rope_theta = keys.real("rope_theta", theta, false);
  const json* scaling = keys.find("rope_scaling");
  const json* parameters = keys.find("rope_parameters");
  check(!scaling || !parameters, "{}: both \"rope_scaling\" and \"rope_parameters\"", keys.file());
  const char* name = parameters ? "rope_parameters" : "rope_scaling";
  if (parameters) scaling = parameters;
  if (!scaling) return;
  check(scaling->is_object(), "{}: \"{}\" must be an object", keys.file(), name);
  ConfigKeys rope(*scaling, fmt::format("{}: \"{}\"", keys.file(), name), true);
  c.rope_theta = rope.real("rope_theta", c.rope_theta, false);
  const std::string old_type = rope.text("type", "default"), type = rope.text("rope_type", old_type.c_str());
  const auto* const kind = std::find(std::begin(scalings), std::end(scalings), type);
  if (kind == std::end(scalings)) return keys.refuse(fmt::format("\"{}\": the type is {}, and kvmesh has default, linear, llama3 and yarn", name, shown(type)));
  rope.must_be("partial_rotary_factor", 1.0);
  RopeScaling& s = c.rope_scaling;
  s.kind = static_cast<RopeScaling::Kind>(kind - std::begin(scalings));
  rope.find("factor"), rope.find("original_max_position_embeddings");  // some files have them without need
  if (s.kind != RopeScaling::Kind::none) {
    need(rope, {"factor"});
    s.factor = rope.real("factor", 1, false);
  }
  if (s.kind == RopeScaling::Kind::llama3) read_llama3(rope, s);
  if (s.kind == RopeScaling::Kind::yarn) read_yarn(rope, s, c);
  rope.check_all_known();
}

void read_gpt2(ConfigKeys& keys, ModelConfig& c) {
  c.seqlen = keys.whole("n_positions", 2, max_seqlen);
  c.d_emb = keys.whole("n_embd", 2, max_width);
  c.num_layers = keys.whole("n_layer", 1, max_layers);
  c.q_heads = c.kv_heads = keys.whole("n_head", 1, max_width);
  const std::int64_t inner = 4 * c.d_emb;
  c.mlp_size = keys.whole("n_inner", 1, 16 * max_width, &inner);
  c.norm_eps = keys.real("layer_norm_epsilon", 1e-5, false);
  c.activation = activation_of(keys, "activation_function", "gelu_new", {{"gelu_new", Activation::gelu_tanh}, {"gelu_pytorch_tanh", Activation::gelu_tanh}, {"gelu", Activation::gelu}});
  keys.must_be("scale_attn_weights", true);
  keys.must_be("scale_attn_by_inverse_layer_idx", false);
  keys.must_be("add_cross_attention", false);
  c.layer_norm = c.norm_weights = true;
  c.learned_positions = c.seqlen;
  c.head_norms = ModelConfig::HeadNorms::none;
  c.qkv_bias = c.out_bias = c.mlp_bias = true;
  c.own_layers.assign(static_cast<std::size_t>(c.num_layers), {-1, false});
}

/// What llama's descendants share.
void read_llama(ConfigKeys& keys, ModelConfig& c, double theta) {
  c.seqlen = keys.whole("max_position_embeddings", 2, max_seqlen);
  c.d_emb = keys.whole("hidden_size", 2, max_width);
  c.num_layers = keys.whole("num_hidden_layers", 1, max_layers);
  c.q_heads = keys.whole("num_attention_heads", 1, max_width);
  const std::int64_t kv_heads = keys.is_null("num_key_value_heads") || c.family == "llama" ? c.q_heads : c.family == "mistral" ? 8 : c.family == "smollm3" ? 4 : 32;
  c.kv_heads = keys.whole("num_key_value_heads", 1, max_width, &kv_heads);
  c.mlp_size = keys.whole("intermediate_size", 1, 16 * max_width);
  const std::int64_t fallback = c.family == "qwen3" ? 128 : c.d_emb / c.q_heads;
  c.head_size = keys.whole("head_dim", 1, max_width, &fallback);
  c.norm_eps = keys.real("rms_norm_eps", 1e-6, false);
  // relu(z) · z = relu(z)²: where gate and up are one matrix, which find_params sees to.
  c.activation = activation_of(keys, "hidden_act", "silu", {{"silu", Activation::swiglu}, {"relu", Activation::relu_squared}});
  c.norm_weights = true;
  c.head_norms = c.family == "qwen3" ? ModelConfig::HeadNorms::weighted : ModelConfig::HeadNorms::none;
  if (c.family == "qwen2") {
    c.qkv_bias = true;
  } else if (c.family != "mistral") {
    c.qkv_bias = c.out_bias = keys.flag("attention_bias", false);
  }
  keys.must_be("rope_interleaved", false);
  keys.must_be("use_mrope", false);
  if (c.family == "llama" || c.family == "smollm3") c.mlp_bias = keys.flag("mlp_bias", false);
  read_rope(keys, c, theta);
  c.own_layers.resize(static_cast<std::size_t>(c.num_layers));
}

/// Which layers slide. A window of W is the W latest keys, the query's own among them.
void read_windows(ConfigKeys& keys, ModelConfig& c) {
  const bool used = keys.flag("use_sliding_window", c.family == "mistral");
  const json* window = keys.find("sliding_window");
  const std::int64_t none = keys.is_null("sliding_window") || c.family == "smollm3" ? 0 : 4096;
  const std::int64_t keys_seen = !used ? 0 : window ? keys.whole(*window, "\"sliding_window\"", 1, max_seqlen) : none;
  const std::int64_t default_first = 28, first = keys.whole("max_window_layers", 0, 1 << 20, &default_first);
  const json* types = layer_list(keys, "layer_types", c.num_layers);
  if (types && c.family == "mistral") keys.refuse("\"layer_types\", which transformers' mistral does not follow");
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    ModelConfig::Layer& layer = c.own_layers[static_cast<std::size_t>(i)];
    bool slides = keys_seen > 0 && (c.family == "mistral" || (c.family == "smollm3" ? !layer.rope : i >= first));
    if (types) {
      const json& type = (*types)[static_cast<std::size_t>(i)];
      slides = type == "sliding_attention";
      if (!slides && type != "full_attention") return keys.refuse("\"layer_types\": " + shown(type.dump()));
      if (slides && keys_seen == 0) return keys.refuse("\"layer_types\" has sliding_attention, but no \"sliding_window\" is in use");
    }
    if (slides) layer.window = keys_seen - 1;
  }
}

void read_smollm3_rope_layers(ConfigKeys& keys, ModelConfig& c) {
  const std::int64_t four = 4, interval = keys.whole("no_rope_layer_interval", 1, max_layers, &four);
  const json* list = layer_list(keys, "no_rope_layers", c.num_layers);
  for (std::int64_t i = 0; i < c.num_layers; ++i) {
    const auto n = static_cast<std::size_t>(i);
    c.own_layers[n].rope = list ? keys.whole((*list)[n], "an entry of \"no_rope_layers\"", 0, 1) == 1 : (i + 1) % interval != 0;
  }
}

void read_nanochat(ConfigKeys& keys, ModelConfig& c) {
  c.seqlen = keys.whole("max_position_embeddings", 2, max_seqlen);
  c.d_emb = keys.whole("hidden_size", 2, max_width);
  c.num_layers = keys.whole("num_hidden_layers", 1, max_layers);
  c.q_heads = keys.whole("num_attention_heads", 1, max_width);
  c.kv_heads = keys.whole("num_key_value_heads", 1, max_width, &c.q_heads);
  c.mlp_size = keys.whole("intermediate_size", 1, 16 * max_width);
  const std::int64_t fallback = c.d_emb / c.q_heads;
  c.head_size = keys.whole("head_dim", 1, max_width, &fallback);
  c.norm_eps = keys.real("rms_norm_eps", 1e-6, false);
  c.activation = activation_of(keys, "hidden_act", "relu2", {{"relu2", Activation::relu_squared}});
  c.logit_soft_cap = keys.real("final_logit_softcapping", keys.is_null("final_logit_softcapping") ? 0 : 15, true);
  c.qkv_bias = c.out_bias = keys.flag("attention_bias", false);
  c.embedding_norm = c.rope_backwards = true;
  read_rope(keys, c, 10000);
  c.own_layers.resize(static_cast<std::size_t>(c.num_layers));
}

/// Token ids of a key that holds one or a list.
std::vector<std::int32_t> ids_of(ConfigKeys& keys, const char* key) {
  std::vector<std::int32_t> ids;
  if (const json* value = keys.find(key)) {
    for (const json& id : value->is_array() ? *value : json::array({*value})) ids.push_back(static_cast<std::int32_t>(keys.whole(id, shown(key), -1, max_vocab)));
  }
  return ids;
}

/// Ids of "eos_token_id" and "pad_token_id": generation_config.json's, where it has them, else config.json's. Pads that also begin or end texts cannot be told from these.
void read_ids(ConfigKeys& keys, ModelConfig& c) {
  std::vector<std::int32_t> pad = ids_of(keys, "pad_token_id"), bos = ids_of(keys, "bos_token_id");
  c.stop_ids = ids_of(keys, "eos_token_id");
  const std::filesystem::path file = std::filesystem::path(keys.file()).parent_path() / "generation_config.json";
  if (std::filesystem::exists(file)) {
    ConfigKeys generation(parse_json_object(read_file(file, 1 << 20), file), file.string());
    const auto take = [&](const char* key, std::vector<std::int32_t>& ids) {
      if (const json* value = generation.find(key); value && !value->is_null()) ids = ids_of(generation, key);
    };
    take("eos_token_id", c.stop_ids);
    take("pad_token_id", pad);
    take("bos_token_id", bos);
  }
  std::erase_if(c.stop_ids, [&](std::int32_t id) { return id < 0 || id >= c.vocab_size; });
  const auto is_among = [&](const std::vector<std::int32_t>& ids) { return std::find(ids.begin(), ids.end(), pad[0]) != ids.end(); };
  if (!pad.empty() && pad[0] >= 0 && !is_among(bos) && !is_among(c.stop_ids)) c.pad_id = pad[0];
}

}  // namespace

ModelConfig transformers_config(json object, const std::filesystem::path& file) {
  ConfigKeys keys(std::move(object), file.string(), true);
  ModelConfig c;
  c.family = keys.text("model_type", "null");
  c.vocab_size = keys.whole("vocab_size", 1, max_vocab);
  c.logit_soft_cap = 0;
  keys.must_be("is_encoder_decoder", false);
  keys.flag("is_decoder", true);
  bool tied = false;
  if (c.family == "gpt2") {
    read_gpt2(keys, c);
    tied = true;
  } else if (c.family == "nanochat") {
    read_nanochat(keys, c);
  } else {
    check(c.family == "llama" || c.family == "mistral" || c.family == "smollm3" || c.family == "qwen2" || c.family == "qwen3",
          "{}: \"model_type\" is {}; kvmesh has gpt2, llama, mistral, smollm3, qwen2, qwen3 and nanochat", keys.file(), shown(c.family));
    tied = c.family == "smollm3";
    read_llama(keys, c, tied ? 2e6 : 1e4);
    if (c.family == "smollm3") read_smollm3_rope_layers(keys, c);
    if (c.family != "llama") read_windows(keys, c);
  }
  check(c.head_size > 0 || c.d_emb % c.q_heads == 0, "{}: the width {} is no multiple of {} heads", keys.file(), c.d_emb, c.q_heads);
  check(c.head_dim() % 2 == 0 && c.head_dim() * c.q_heads <= max_width, "{}: {} heads of {}: kvmesh needs an even head size, and at most {} together", keys.file(), c.q_heads,
        c.head_dim(), max_width);
  check(c.q_heads % c.kv_heads == 0, "{}: {} query heads are no multiple of {} key heads", keys.file(), c.q_heads, c.kv_heads);
  c.tied_embeddings = keys.flag("tie_word_embeddings", tied);
  c.local_window_size = c.seqlen / 4;

  const std::string dtype = keys.text("dtype", keys.text("torch_dtype", "float32").c_str());
  check(dtype == "float32" || dtype == "bfloat16" || dtype == "float16", "{}: the dtype {} is not understood", keys.file(), shown(dtype));
  c.dtype = dtype == "bfloat16" ? DType::bf16 : DType::f32;
  read_ids(keys, c);
  for (const char* key : passed_over) keys.find(key);
  keys.check_all_known();
  return c;
}

void describe_family(const ModelConfig& c, nlohmann::ordered_json& j) {
  constexpr const char* activations[] = {"relu_squared", "gelu_tanh", "gelu", "swiglu"};
  constexpr const char* head_norms[] = {"none", "plain", "weighted"};
  for (const char* key : {"window_pattern", "local_window_size", "nope_global_attn"}) j.erase(key);
  j["model_type"] = c.family;
  j["head_dim"] = c.head_dim();
  j["mlp_width"] = c.mlp_width();
  j["activation"] = activations[static_cast<int>(c.activation)];
  j["norm"] = c.layer_norm ? "layer_norm" : c.norm_weights ? "rms_norm, with weights" : "rms_norm";
  j["head_norms"] = head_norms[static_cast<int>(c.head_norms)];
  j["biases"] = nlohmann::ordered_json{{"qkv", c.qkv_bias}, {"attention_output", c.out_bias}, {"mlp", c.mlp_bias}};
  j["positions"] = c.learned_positions > 0 ? "learned" : "rope";
  if (c.learned_positions == 0) j["rope_scaling"] = scalings[static_cast<int>(c.rope_scaling.kind)];
  j["tied_embeddings"] = c.tied_embeddings;
  std::vector<std::int64_t> sliding, without_rope;
  for (std::size_t i = 0; i < c.own_layers.size(); ++i) {
    if (c.own_layers[i].window >= 0) sliding.push_back(static_cast<std::int64_t>(i));
    if (!c.own_layers[i].rope && c.learned_positions == 0) without_rope.push_back(static_cast<std::int64_t>(i));
  }
  if (!sliding.empty()) j["sliding_layers"] = sliding, j["sliding_window"] = c.own_layers[static_cast<std::size_t>(sliding[0])].window + 1;
  if (!without_rope.empty()) j["layers_without_rope"] = without_rope;
  j["stop_ids"] = c.stop_ids;
  if (c.pad_id >= 0) j["pad_id"] = c.pad_id;
}

}  // namespace kvmesh
