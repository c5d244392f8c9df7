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

/// What stands between an MLP's two matrices; swiglu: silu(gate) · up, of a first matrix that holds both.
enum class Activation { relu_squared, gelu_tanh, gelu, swiglu };

/// How RoPE's frequencies theta^(-2i/h) are stretched for longer contexts. Source: transformers' rope types "linear", "llama3" and "yarn".
struct RopeScaling {
  enum class Kind { none, linear, llama3, yarn } kind = Kind::none;
  double factor = 1;
  std::int64_t original_positions = 0;               ///< the context before; llama3's and yarn's
  double low_freq_factor = 1, high_freq_factor = 4;  ///< llama3's
  // yarn's: how often a wave that stays as it is, and one that is stretched by the whole factor, turns within the original context; what cos and sin are
  // multiplied by; whether the pairs between the two are counted from and to whole ones.
  double beta_fast = 32, beta_slow = 1, magnitude = 1;
  bool truncate = true;
};

/// A decoder-only transformer, its parts as data. The defaults are the original's (contract, section 2).
struct ModelConfig {
  std::string family = "nanoGPTJAX";  ///< what its parameters are called (param_spec.h): "nanoGPTJAX", or a model_type of transformers
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

  // What only other families vary.
  std::int64_t head_size = 0;   ///< 0: d_emb / q_heads
  std::int64_t mlp_size = 0;    ///< 0: 4 · d_emb
  Activation activation = Activation::relu_squared;
  bool layer_norm = false;      ///< LayerNorm, with weights and biases, else RMSNorm
  bool norm_weights = false;
  enum class HeadNorms { none, plain, weighted } head_norms = HeadNorms::plain;
  bool embedding_norm = false;  ///< a norm behind the embedding
  bool qkv_bias = false, out_bias = false, mlp_bias = false;
  std::int64_t learned_positions = 0;  ///< P: a table [P, d_emb] is added to the embedding, and there is no RoPE; 0: none
  bool rope_backwards = false;  ///< RoPE turns by -angle
  RopeScaling rope_scaling;
  bool tied_embeddings = false; ///< the head's matrix is the embedding's

  /// How layer i attends: window < 0 is full attention; see the contract's window_pattern.
  struct Layer {
    std::int64_t window = -1;
    bool rope = true;
  };
  std::vector<Layer> own_layers;         ///< empty: as the window pattern says
  std::vector<std::int32_t> stop_ids;    ///< tokens that end a text; empty: the tokenizer's or special_tokens' <|endoftext|>
  std::int32_t pad_id = -1;              ///< a token that only pads; -1: the tokenizer's or special_tokens' <|pad|>

  bool native() const { return family == "nanoGPTJAX"; }
  std::int64_t head_dim() const { return head_size > 0 ? head_size : d_emb / q_heads; }
  std::int64_t mlp_width() const { return mlp_size > 0 ? mlp_size : 4 * d_emb; }
  /// Columns of an MLP's first matrix.
  std::int64_t mlp_columns() const { return activation == Activation::swiglu ? 2 * mlp_width() : mlp_width(); }
  std::vector<Layer> layers() const;
};

/// Limits far above any model, such that a layer's weights, all layers' weights and a row's cache stay below 2^60 bytes.
constexpr std::int64_t max_seqlen = std::int64_t{1} << 24, max_vocab = (std::int64_t{1} << 20) - 1, max_width = std::int64_t{1} << 18,
                       max_layers = std::int64_t{1} << 12;

/// Reads and checks; an Error names the file and the key. A file with "model_type" is transformers' (transformers_config.h); for its stop and pad ids the
/// generation_config.json beside it is read too.
ModelConfig read_config(const std::filesystem::path& file);
/// The same from the text of a config.json of the contract; `source` says where it came from.
ModelConfig parse_config(std::string_view text, const std::string& source);
/// The JSON text that read_config reads back to the same config; for other families a description, for people.
std::string to_json(const ModelConfig& config);

}  // namespace kvmesh
