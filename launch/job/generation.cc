// Rows in, lines out.
#include "launch/job/generation.h"

#include "launch/version.h"
#include "model/checkpoint.h"

namespace kvmesh {
namespace {

std::vector<std::string> prompt_lines(const std::vector<std::string>& prompts) {
  std::vector<std::string> lines;
  for (const std::string& p : prompts) lines.push_back(Json{{"prompt", to_valid_utf8(p)}}.dump());
  return lines;
}

}  // namespace

Json choices_of(const GenerateCommandOptions& o) {
  const RowDefaults& r = o.row;
  return {{"max-new-tokens", r.max_new_tokens}, {"temperature", r.temperature}, {"top-k", r.top_k}, {"top-p", r.top_p}, {"min-p", r.min_p},
          {"chat", o.chat.on}, {"system", o.chat.system ? Json::array({*o.chat.system}) : Json::array()}, {"stop", r.stop}, {"stop-token", r.stop_tokens}, {"ignore-eos", r.ignore_eos},
          {"seed", o.generate.seed}, {"rng", o.generate.rng == Rng::row ? "row" : "jax"}, {"samples", o.generate.samples}, {"logprobs", o.generate.logprobs}};
}

Json identity_of(const GenerateCommandOptions& o, const Job& job) {
  Json identity = {{"kvmesh", version_text()}, {"build", build_text()}, {"device", job.device->kind()}, {"dtype", name_of(job.dtype)}, {"quantize", name_of(job.quantize)},
                   {"checkpoint", job.hash_of_checkpoint(o.mesh.checkpoint)}, {"prompts", o.prompt.empty() ? file_hash(o.mesh.prompts) : Json(prompt_lines(o.prompt)).dump()}, {"context", job.config.seqlen}};
  identity.update(choices_of(o));
  identity["chat-template"] = o.chat.file.empty() ? Json() : Json(file_hash(o.chat.file));  // the checkpoint's own is among its files
  identity["chat-date"] = job.chat && !job.chat->day().empty() ? Json::array({job.chat->day()}) : Json::array();
  return identity;
}

LineSource open_lines(const GenerateCommandOptions& o, const Job& job, Communicator& ranks) {
  check(job.tokenizer || o.row.stop.empty(), "--stop: {} has no tokenizer.tiktoken or tokenizer.json", o.mesh.checkpoint.string());
  for (const std::int32_t id : o.row.stop_tokens) check(id >= 0 && id < job.config.vocab_size, "--stop-token {}: outside the vocabulary of {}", id, job.config.vocab_size);
  check(o.generate.logprobs <= job.config.vocab_size, "--logprobs {}: more than the vocabulary of {}", o.generate.logprobs, job.config.vocab_size);
  LineSource lines = o.prompt.empty() ? LineSource(ranks, o.mesh.prompts) : LineSource(ranks, prompt_lines(o.prompt));
  check(!lines.at_end(), "no input: {} has no rows", o.mesh.prompts.string());
  return lines;
}

RowQueue::RowQueue(LineSource lines, const GenerateCommandOptions& options, const Job& job, Wanted wanted, Emit emit, bool emits)
    : lines_(std::move(lines)),
      options_(options),
      context_{options.row, job.config, job.tokenizer ? &*job.tokenizer : nullptr, job.chat ? &*job.chat : nullptr},
      wanted_(std::move(wanted)),
      emit_(std::move(emit)),
      emits_(emits) {}

std::optional<Row> RowQueue::next() {
  const std::int64_t samples = options_.generate.samples;
  for (;;) {
    while (sample_ < samples) {
      const std::int64_t ordinal = row_.index * samples + sample_;
      Row row = row_;
      row.sample = sample_++;
      if (!wanted_(ordinal)) continue;
      ++texts_[row.index].second;
      ++entered_;
      return row;
    }
    const std::optional<std::string_view> line = lines_.next();
    exhausted_ = !line;
    if (!line) return std::nullopt;
    if (const auto it = texts_.find(row_.index); it != texts_.end() && it->second.second == 0) texts_.erase(it);
    const std::int64_t index = count_++;
    if (!wants_any(index)) continue;
    InputRow in = parse_row(*line, index, context_);
    if (!in.text.error.empty()) {
      check(options_.generate.rng == Rng::row, "row {}: {} (--rng jax serves all rows or none)", index, in.text.error);
      ++errors_;
      if (emits_) emit_(index * samples, samples, true, error_line(in.text));
      continue;
    }
    if (options_.generate.rng == Rng::jax) check_jax(in.row);
    row_ = std::move(in.row);
    sample_ = 0;
    texts_.emplace(index, std::pair(std::move(in.text), 0));
  }
}

void RowQueue::finished(const Row& row, const Completion& completion) {
  const auto it = texts_.find(row.index);
  if (emits_) {
    emit_(row.index * options_.generate.samples + row.sample, 1, false, completion_line(it->second.first, completion, context_.tokenizer != nullptr, options_.generate, row.sample));
  }
  if (--it->second.second == 0 && !(row_.index == row.index && sample_ < options_.generate.samples)) texts_.erase(it);
}

std::int64_t RowQueue::total() const {
  if (exhausted_) return entered_;
  const double read = lines_.fraction_read();
  if (read <= 0) return -1;
  return entered_ + static_cast<std::int64_t>(static_cast<double>(count_ * options_.generate.samples) * (1 / read - 1));
}

bool RowQueue::wants_any(std::int64_t index) const {
  for (std::int64_t s = 0; s < options_.generate.samples; ++s) {
    if (wanted_(index * options_.generate.samples + s)) return true;
  }
  return false;
}

void RowQueue::check_jax(const Row& row) const {
  check(!row.seed, "row {}: a row's own \"seed\" has no meaning with --rng jax", row.index);
  check(row.index * options_.generate.samples + options_.generate.samples <= options_.generate.batch_size,
        "--rng jax draws over one batch: there are more rows than --batch-size {}", options_.generate.batch_size);
}

Progress::Figures figures_of(const GenerateStats& s, const RowQueue& rows) { return {s.rows, s.new_tokens, s.in_flight, rows.total(), rows.total_is_known()}; }

GenerateStats generate_rows(RowQueue& rows, const Gpt& gpt, const Job& job, Communicator& ranks, const GenerateCommandOptions& o,
                            const std::function<bool(const GenerateStats&)>& proceed, TimeSink sink) {
  std::vector<Row> batch;  // --rng jax: all rows, so that what it cannot serve is told before anything is generated
  if (o.generate.rng == Rng::jax) {
    while (std::optional<Row> row = rows.next()) batch.push_back(std::move(*row));
  }
  std::size_t taken = 0;
  Generator generator(gpt, job.tokenizer ? &*job.tokenizer : nullptr, ranks, o.generate, job.device_ranks.get(), std::move(sink));
  return generator.run(
      [&]() -> std::optional<Row> {
        if (o.generate.rng == Rng::row) return rows.next();
        return taken < batch.size() ? std::optional(std::move(batch[taken++])) : std::nullopt;
      },
      [&](const Row& row, Completion&& completion) { rows.finished(row, completion); }, proceed);
}

}  // namespace kvmesh
