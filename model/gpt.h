// The forward pass of every family (config.h says which parts it has): packed tokens of any mixture of rows in, logits out, keys and values into the cache. Prefill, decode, chunks and
// scoring are all this one function; a row's bits do not depend on the mixture (device.h).
#pragma once

#include "model/checkpoint.h"
#include "model/kv_cache.h"

#include <span>
#include <vector>

namespace kvmesh {

/// f32 [seqlen, h]: cosines of h / 2 angles, then their sines; row = position in the row. Computed in float64.
Tensor rope_table(Device& device, const ModelConfig& config);

/// What of an activation is done where the MLP's first matrix is multiplied; swiglu: nothing, it is an operation of its own.
Epilogue epilogue_of(Activation activation);

class Gpt {
 public:
  /// Tokens that go through the layers at once; longer passes are cut into such chunks. Bounds the activations' memory.
  static constexpr std::int64_t chunk_tokens = 512;

  Gpt(ModelConfig config, DType dtype, GptWeights weights, Device& device);

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  Device& device() const { return device_; }
  const GptWeights& weights() const { return weights_; }

  /// Activations of one pass; owned by the caller so that the model is const. One pass at a time may use it.
  struct Workspace {
    Workspace(const Gpt& gpt, std::int64_t tokens);
    std::int64_t tokens;
    std::uint64_t serial = serial_number();
    Tensor x, normed;    // [tokens, D]
    Tensor qkv;          // [tokens, (H + 2·K)·h]
    Tensor q, attended;  // [tokens, H·h]
    Tensor hidden;       // [tokens, columns of fc1]
    Tensor gated;        // [tokens, F], of a gated MLP
    Tensor last;         // [tokens, D], of the rows whose logits are wanted
    std::vector<Segment> segments;     // of the chunk that is on its way
    std::vector<std::int32_t> wanted;  // likewise
  };

  /// tokens: host ids [T], packed as `segments` say (in the order of their offsets, without gaps). `wanted`: ascending rows of the
  /// packed tokens whose logits f32 [wanted.size(), V] are written to `logits`. With `drawn`, i32 [N] of the device's, tokens are where in it the ids are (Device::prepare). On the CPU a pass asks for no memory once one of its size has run. Each run's earlier positions must be in the cache.
  void forward(std::span<const std::int32_t> tokens, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const KvCache& cache,
               Workspace& workspace, const Tensor& logits, const Tensor& drawn = {}) const;

 private:
  void forward_chunk(const Pass& pass, std::int64_t tokens, const KvCache& cache, Workspace& workspace, const Tensor& logits) const;
  void enqueue(const Pass& pass, std::int64_t tokens, const KvCache& cache, Workspace& workspace, const Tensor& logits) const;

  ModelConfig config_;
  DType dtype_;
  GptWeights weights_;
  Device& device_;
  std::uint64_t serial_ = serial_number();
  std::vector<ModelConfig::Layer> layers_;
  Tensor rope_;  // rope_table's; undefined: no layer has RoPE
};

}  // namespace kvmesh
