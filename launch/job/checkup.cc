// Looking, gathering, judging, telling.
#include "launch/job/checkup.h"

#include "comm/sharding.h"
#include "launch/job/agree.h"
#include "model/checkpoint.h"

#include <chrono>
#include <thread>

namespace kvmesh {

void add_job(Facts& facts, const GenerateCommandOptions& o, const Job& job, const ProcessGroup& group) {
  const ModelConfig& c = job.config;
  const auto width = static_cast<std::int64_t>(size_of(job.dtype));
  facts.threads = threads_of(o.mesh, group);
  facts.device = job.device->kind();
  facts.share_gpus = o.mesh.share_gpus;
  facts.weights = static_cast<std::int64_t>(weights_bytes(c, job.dtype, *job.device));
  facts.token_bytes = 2 * c.num_layers * c.kv_heads * c.head_dim() * width;
  facts.seqlen = c.seqlen;
  const Range own = split(o.generate.batch_size, group.size(), group.rank());
  facts.places = own.end - own.begin;
  const std::int64_t heads = c.q_heads * c.head_dim(), activations = Gpt::chunk_tokens * (6 * c.d_emb + 3 * heads + 2 * c.kv_heads * c.head_dim());  // Gpt::Workspace
  facts.workspace = activations * width + 4 * c.seqlen * c.head_dim();
  facts.row_bytes = 4 * c.vocab_size;  // its logits
  const Json choices = choices_of(o);
  for (const auto& [name, value] : choices.items()) facts.options[name] = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  facts.options["dtype"] = name_of(job.dtype);
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
    if (speaks && f.severity >= from) fmt::print(stderr, "kvmesh: {}: {}\n", names[static_cast<int>(f.severity)], f.text);
    well = well && f.severity != Severity::error;
  }
  if (!well && facts.size == 1 && !speaks) std::this_thread::sleep_for(std::chrono::seconds(1));  // mpirun ends all when one leaves
  return well;
}

bool check_up(const GenerateCommandOptions& o, const Job& job, ProcessGroup& group) {
  Facts facts = look_around(group);
  add_job(facts, o, job, group);
  return tell(findings(gather(facts, group.world())), Severity::warning, facts);
}

}  // namespace kvmesh
