// A job's common beginning.
#include "launch/job/job.h"

#include "comm/nccl.h"
#include "comm/sharding.h"
#include "launch/job/agree.h"
#include "launch/job/cores.h"
#include "launch/version.h"
#include "model/checkpoint.h"
#include "model/pack_cache.h"

#include <unistd.h>

namespace kvmesh {

ModelConfig with_context(ModelConfig config, const MeshOptions& options) {
  if (options.context == 0) return config;
  check(options.context <= config.seqlen, "--context {}: the model can do {} tokens", options.context, config.seqlen);
  config.seqlen = options.context;
  return config;
}

DType dtype_of(const MeshOptions& options, const ModelConfig& config) {
  return options.dtype == "auto" ? config.dtype : options.dtype == "float32" ? DType::f32 : DType::bf16;
}

Quantize quantize_of(const MeshOptions& options) { return options.quantize == "int8" ? Quantize::int8 : Quantize::none; }

Attention attention_of(const MeshOptions& options) {
  return options.attention == "cudnn" ? Attention::cudnn : options.attention == "native" ? Attention::own : Attention::automatic;
}

Job::Job(const MeshOptions& options, const std::optional<ModelConfig>& shape, ProcessGroup& group) {
  group.set_deadline(std::chrono::duration<double>(options.comm_timeout));
  threads = fair_threads(group);
  if (options.threads > 0) threads = options.threads;
  ShardingRules().check_runnable(Mesh::parse(options.mesh, group.size()));
  share_gpus = options.share_gpus;
  if (options.device != "cpu") gpu_ = choose_gpu(group, options.share_gpus);
  device = make_device(options.device, {.threads = threads, .gpu = gpu_.index, .attention = attention_of(options)});
  pack_cache_ = options.pack_cache;
  broadcast_ = options.load == "broadcast";
  config = with_context(shape ? *shape : read_config(options.checkpoint / "config.json"), options);
  dtype = dtype_of(options, config);
  quantize = quantize_of(options);
  if (!shape) tokenizer = load_tokenizer(options.checkpoint, config);
}

void Job::join_devices(ProcessGroup& group) {
  if (device->queue() != nullptr && group.size() > 1) device_ranks = make_nccl_communicator(group, group.deadline(), device->queue(), gpu_.shared);
}

void Job::open_chat(const ChatOptions& options, const std::filesystem::path& checkpoint, Communicator& ranks) {
  if (!options.on) return;
  const std::time_t clock = std::time(nullptr);
  std::tm here{};
  ::localtime_r(&clock, &here);
  const std::int64_t today = from_first_rank(ranks, std::int64_t{here.tm_year + 1900} * 10000 + (here.tm_mon + 1) * 100 + here.tm_mday);
  check(tokenizer.has_value(), "--chat: {} has no tokenizer.tiktoken or tokenizer.json", checkpoint.string());
  chat.emplace(options, checkpoint, fmt::format("{:04}-{:02}-{:02}", today / 10000, today / 100 % 100, today % 100));
}

namespace {

// What one rank packs must be what all would have packed.
void check_alike(const Job& job, Communicator& ranks) {
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  const std::vector<std::string> kinds = gather_bytes(ranks, job.device->kind()), hosts = gather_bytes(ranks, host),
                                 configs = gather_bytes(ranks, fmt::format("{} {}", name_of(job.dtype), to_json(job.config)));
  for (std::size_t r = 1; r < kinds.size(); ++r) {
    check(kinds[r] == kinds[0], "--load broadcast: rank 0 on {} packs for {}, and rank {} on {} has {}: use hosts of one kind, or --load read", hosts[0], kinds[0], r, hosts[r], kinds[r]);
    check(configs[r] == configs[0], "--load broadcast: config.json on {}, which rank {} sees, describes another model than that on {}", hosts[r], r, hosts[0]);
  }
}

std::filesystem::path cache_folder(const std::filesystem::path& cache, const std::filesystem::path& checkpoint) { return cache == "beside" ? checkpoint / ".kvmesh" : cache; }

}  // namespace

std::string Job::hash_of_checkpoint(const std::filesystem::path& checkpoint) const {
  return pack_cache_.empty() ? checkpoint_hash(checkpoint, threads) : content_of(checkpoint, cache_folder(pack_cache_, checkpoint), threads).hash;
}

const Gpt& Job::load(const std::filesystem::path& checkpoint, ProcessGroup& group) {
  const LoadOptions options = {threads, cache_folder(pack_cache_, checkpoint), fmt::format("{} {}", version_text(), build_text()), quantize, broadcast_};
  if (broadcast_) check_alike(*this, group.world());
  gpt_ = std::make_unique<Gpt>(config, dtype, load_weights(checkpoint, config, dtype, *device, group, options), *device);
  return *gpt_;
}

const Gpt& Job::randomize(ProcessGroup& group) {
  gpt_ = std::make_unique<Gpt>(config, dtype, random_weights(config, dtype, *device, group, 0, threads, quantize), *device);
  return *gpt_;
}

}  // namespace kvmesh
