// A checkpoint folder: config, weights (packed once a host, shared by its ranks), tokenizer.
#pragma once

#include "comm/process_group.h"
#include "model/param_spec.h"
#include "model/safetensors.h"
#include "model/tokenizer/tokenizer.h"
#include "runtime/device.h"

#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace kvmesh {

/// The weights as the forward pass reads them, on the device. What a model's config does not ask for is undefined.
struct GptWeights {
  struct NormWeights {
    Tensor weight, bias;  // f32 [D]
  };
  struct Block {
    Weight qkv;  // [D, (H + 2·K)·h]: query, key, value heads side by side
    Weight wo;   // [H·h, D]
    Weight fc1;  // [D, F], of a gated MLP [D, 2·F]: gate, then up
    Weight fc2;  // [F, D]
    NormWeights attn_norm = {}, mlp_norm = {};
    Tensor q_norm = {}, k_norm = {};  // f32 [h]
  };
  Tensor embed;      // [V, D]
  Tensor positions;  // [P, D]
  std::vector<Block> blocks;
  NormWeights norm;  // before the head
  Weight lm_head;    // [D, V]
};

/// Where each parameter of the config is, in the order of param_specs. An Error that names file and tensor unless the folder's tensors are exactly
/// these: each there with its shape and as F32, BF16 or F16, and no other.
std::vector<SafetensorsFolder::Entry> find_params(const SafetensorsFolder& files, const ModelConfig& config);

struct LoadOptions {
  int threads = 0;                    ///< of this rank; 0: its share of the cores that it may use
  std::filesystem::path pack_cache;   ///< folder of packed weights that later starts map (model/pack_cache.h); empty: none
  std::string pack_tag;               ///< changes with the program that packs
  Quantize quantize = Quantize::none; ///< of the matrices of products: blocks and head, not the embedding, norms and biases
  bool broadcast = false;             ///< only rank 0's host reads the weights' files, and sends what it packed to the others, which must have the same kind of device; without pack_cache
};

/// Maps model.safetensors (or the shards that model.safetensors.index.json names), checks every tensor's name, shape and dtype,
/// converts to `dtype`, packs for `device`. Collective over the host's ranks: each packs a part, all share the memory, which lives
/// until the last Weight of it is gone. An Error names file and tensor; a weight that is not finite in `dtype` is one.
GptWeights load_weights(const std::filesystem::path& folder, const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group,
                        const LoadOptions& options = {});

/// Bytes of memory that load_weights takes on a host.
std::size_t weights_bytes(const ModelConfig& config, DType dtype, const Device& device, Quantize quantize = Quantize::none);

/// Weights of a model that nobody has trained: uniform numbers with variance 1 / fan-in, the same for the same seed; for benchmarks. Shared
/// and collective as load_weights is.
GptWeights random_weights(const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group, std::uint32_t seed, int threads = 0,
                          Quantize quantize = Quantize::none);

/// The folder's tokenizer.tiktoken, else its tokenizer.json; an empty path if it has neither.
std::filesystem::path tokenizer_file(const std::filesystem::path& folder);

/// The folder's tokenizer with the config's special tokens, or none if there is no file of one. An Error if it has ids
/// beyond the model's vocabulary; only special tokens may lie there: a prompt that holds one cannot be served.
std::optional<Tokenizer> load_tokenizer(const std::filesystem::path& folder, const ModelConfig& config);

/// 32 hex digits that change with any byte of config.json, the weight files, the tokenizer's and the chat template, and with a weight file's
/// name (XXH3, 128 bits: against mix-ups, not against forgery). Reads everything once, with `threads` threads.
std::string checkpoint_hash(const std::filesystem::path& folder, int threads);

/// The files that checkpoint_hash reads.
std::vector<std::filesystem::path> checkpoint_files(const std::filesystem::path& folder);

/// 32 hex digits that change with any byte of the file. Of a file of more than `most` bytes only blocks that are spread over it are read, about
/// so many bytes together.
std::string file_hash(const std::filesystem::path& file, std::int64_t most = std::numeric_limits<std::int64_t>::max());

/// Writes a checkpoint: config.json and the weights, which must be the config's parameters, in shards of at most
/// `max_shard_bytes`; `tokenizer`, if not empty, is copied to tokenizer.tiktoken or .json. The folder must not exist; it appears complete,
/// or an Error (Fault::io when writing failed) leaves only a folder of the same name with ".partial" behind, which the next save
/// replaces. `more` may write further files into the folder that becomes it. For one rank.
void save_checkpoint(const std::filesystem::path& folder, const ModelConfig& config, std::span<const NamedTensor> tensors,
                     const std::filesystem::path& tokenizer = {}, std::size_t max_shard_bytes = std::size_t{5} << 30,
                     const std::function<void(const std::filesystem::path& folder)>& more = {});

}  // namespace kvmesh
