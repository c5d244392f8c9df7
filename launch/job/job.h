// What generate and score begin alike: the mesh checked, device, checkpoint and tokenizer in place.
#pragma once

#include "launch/job/chat.h"
#include "launch/options.h"

#include "comm/gpus.h"
#include "comm/process_group.h"
#include "model/gpt.h"

#include <memory>
#include <optional>

namespace kvmesh {

/// With --context as its seqlen.
ModelConfig with_context(ModelConfig config, const MeshOptions& options);
/// What --attention, --dtype and --quantize ask for.
Attention attention_of(const MeshOptions& options);
DType dtype_of(const MeshOptions& options, const ModelConfig& config);
Quantize quantize_of(const MeshOptions& options);

struct Job {
  /// Collective. The group's deadline becomes --comm-timeout.
  Job(const MeshOptions& options, ProcessGroup& group) : Job(options, std::nullopt, group) {}
  /// `shape` instead of a checkpoint, if given.
  Job(const MeshOptions& options, const std::optional<ModelConfig>& shape, ProcessGroup& group);

  int threads;  ///< of this rank on the CPU: --threads, else fair_threads (cores.h)
  std::unique_ptr<Device> device;
  bool share_gpus;  ///< --share-gpus: other ranks of the host may have the same device
  std::unique_ptr<Communicator> device_ranks;  ///< join_devices'
  ModelConfig config;
  std::optional<Tokenizer> tokenizer;
  std::optional<Chat> chat;  ///< open_chat's
  DType dtype;
  Quantize quantize;

  /// For --sync logits (collective): makes the communicator between the devices' memories, where they have their own.
  void join_devices(ProcessGroup& group);

  /// With --chat, every rank reads the template; the day is rank 0's. Collective, also where a rank fails.
  void open_chat(const ChatOptions& options, const std::filesystem::path& checkpoint, Communicator& ranks);

  /// checkpoint_hash, as --pack-cache remembers it if it is given.
  std::string hash_of_checkpoint(const std::filesystem::path& checkpoint) const;
  /// Loads the weights (collective); once.
  const Gpt& load(const std::filesystem::path& checkpoint, ProcessGroup& group);
  /// The same with random weights.
  const Gpt& randomize(ProcessGroup& group);

 private:
  GpuChoice gpu_;
  std::filesystem::path pack_cache_;
  bool broadcast_;
  std::unique_ptr<Gpt> gpt_;
};

}  // namespace kvmesh
