// A job's common beginning.
#include "launch/job/job.h"

#include "comm/nccl.h"
#include "comm/sharding.h"
#include "launch/job/cores.h"
#include "model/checkpoint.h"

namespace kvmesh {

Job::Job(const MeshOptions& options, const std::optional<ModelConfig>& shape, ProcessGroup& group) {
  group.set_deadline(std::chrono::duration<double>(options.comm_timeout));
  threads = fair_threads(group);
  if (options.threads > 0) threads = options.threads;
  ShardingRules().check_runnable(Mesh::parse(options.mesh, group.size()));
  if (options.device != "cpu") gpu_ = choose_gpu(group, options.share_gpus);
  device = make_device(options.device, {.threads = threads, .gpu = gpu_.index});
  config = shape ? *shape : read_config(options.checkpoint / "config.json");
  dtype = options.dtype == "auto" ? config.dtype : options.dtype == "float32" ? DType::f32 : DType::bf16;
  if (!shape) tokenizer = load_tokenizer(options.checkpoint, config);
}

void Job::join_devices(ProcessGroup& group) {
  if (device->queue() != nullptr && group.size() > 1) device_ranks = make_nccl_communicator(group, group.deadline(), device->queue(), gpu_.shared);
}

const Gpt& Job::load(const std::filesystem::path& checkpoint, ProcessGroup& group) {
  gpt_ = std::make_unique<Gpt>(config, dtype, load_weights(checkpoint, config, dtype, *device, group), *device);
  return *gpt_;
}

const Gpt& Job::randomize(ProcessGroup& group) {
  gpt_ = std::make_unique<Gpt>(config, dtype, random_weights(config, dtype, *device, group, 0), *device);
  return *gpt_;
}

}  // namespace kvmesh
