// Looking, gathering, judging, telling.
#include "launch/job/checkup.h"

#include "comm/sharding.h"
#include "launch/job/agree.h"
#include "model/checkpoint.h"
#include "model/memory.h"
#include "runtime/say.h"

#include <chrono>
#include <thread>

namespace kvmesh {

void add_job(Facts& facts, const GenerateCommandOptions& o, const Job& job, const ProcessGroup& group) {
  const ModelConfig& c = job.config;
  const auto width = static_cast<std::int64_t>(size_of(job.dtype));
  facts.threads = job.threads;
  facts.device = job.device->kind();
  facts.share_gpus = o.mesh.share_gpus;
  facts.weights = static_cast<std::int64_t>(weights_bytes(c, job.dtype, *job.device, job.quantize));
  facts.token_bytes = 2 * c.num_layers * c.kv_heads * c.head_dim() * width;
  facts.seqlen = c.seqlen;
  const Range own = split(o.generate.batch_size, group.size(), group.rank());
  facts.places = own.end - own.begin;
  facts.workspace = memory_needs(c, job.dtype, *job.device, false).activations;
  facts.row_bytes = 4 * c.vocab_size;  // its logits
  const Json choices = choices_of(o);
  for (const auto& [name, value] : choices.items()) facts.options[name] = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  facts.options["context"] = std::to_string(c.seqlen);
  facts.options["dtype"] = name_of(job.dtype);
  facts.options["quantize"] = name_of(job.quantize);
  facts.options["batch-size"] = std::to_string(o.generate.batch_size);
  facts.options["mesh"] = to_string(Mesh::parse(o.mesh.mesh, group.size()));
  facts.options["prefill-chunk"] = std::to_string(o.generate.prefill_chunk);
  facts.options["sync-every"] = std::to_string(o.generate.sync_every);
  facts.options["sentinel"] = std::to_string(o.generate.sentinel);
  facts.options["shards"] = o.generate.shards == Shards::shared ? "shared" : "static";
  facts.options["static-batches"] = o.generate.static_batches ? "on" : "off";
  facts.options["pad"] = o.generate.pad == Pad::power_of_two ? "power-of-two" : "longest";
  facts.options["sync"] = o.generate.sync == Sync::tokens ? "tokens" : "logits";
  for (std::size_t i = 0; i < o.prompt.size(); ++i) facts.options[fmt::format("prompt ({})", i)] = Json(o.prompt[i]).dump(-1, ' ', false, Json::error_handler_t::replace);
}

void settle_batch(GenerateCommandOptions& o, const Job& job, const Facts& facts, ProcessGroup& group) {
  constexpr std::int64_t most_rows = 1024;  // a rank; more make a step longer, not a token cheaper
  const MemoryNeeds needs = memory_needs(job.config, job.dtype, *job.device, o.generate.sync == Sync::logits, job.quantize);
  std::int64_t free = -1;
  std::exception_ptr failed;  // to be thrown when no other rank waits for this one any more
  try {
    free = job.device->free_bytes();
  } catch (const Error&) {
    failed = std::current_exception();
  }
  const bool own_memory = free >= 0;
  if (own_memory) {
    if (o.mesh.share_gpus) free /= group.local_size();
  } else if (facts.available >= 0) {  // the host's ranks have one copy of the weights
    free = needs.weights + (facts.available - needs.weights) / group.local_size();
  }
  if (o.mesh.batch_size == auto_batch) {
    const std::int64_t usable = free / 10 * 9, rows = std::min(largest_batch(needs, usable, group.size()) / group.size(), most_rows);
    const std::int64_t common = -largest(group.world(), -rows);
    o.mesh.batch_size = o.generate.batch_size = std::max<std::int64_t>(common, 1) * group.size();
    if (failed) std::rethrow_exception(failed);
    check(free >= 0, "--batch-size auto: this host does not tell how much memory is left; give a number");
    check_memory(needs, usable, group.size(), group.size());
    if (group.rank() == 0) say("kvmesh: --batch-size auto: {} rows in flight\n", o.mesh.batch_size);
  } else if (failed) {
    std::rethrow_exception(failed);
  } else if (own_memory) {
    check_memory(needs, free, o.mesh.batch_size, group.size());
  }
}

std::vector<Facts> gather(const Facts& facts, Communicator& ranks) {
  std::vector<Facts> all;
  for (const std::string& bytes : gather_bytes(ranks, to_bytes(facts))) all.push_back(facts_of(bytes));
  return all;
}

bool tell(std::span<const Finding> findings, Severity from, const Facts& facts) {
  constexpr const char* names[] = {"note", "warning", "error"};
  const bool speaks = facts.rank == 0 && (facts.size > 1 || facts.told_rank <= 0);
  bool well = true;
  for (const Finding& f : findings) {
    if (speaks && f.severity >= from) say("kvmesh: {}: {}\n", names[static_cast<int>(f.severity)], f.text);
    well = well && f.severity != Severity::error;
  }
  if (!well && facts.size == 1 && !speaks) std::this_thread::sleep_for(std::chrono::seconds(1));  // mpirun ends all when one leaves
  return well;
}

bool check_up(GenerateCommandOptions& o, const Job& job, ProcessGroup& group) {
  Facts facts = look_around(group);
  settle_batch(o, job, facts, group);
  add_job(facts, o, job, group);
  return tell(findings(gather(facts, group.world())), Severity::warning, facts);
}

}  // namespace kvmesh
