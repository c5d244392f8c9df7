#include "launch/job/train_samples.h"

namespace kvmesh {

TrainSamples::TrainSamples(const TrainCommandOptions& options, const Job& job, std::int32_t end_of_text) : options_(options), job_(job) {
  check(options.samples.empty() || job.tokenizer, "--sample: {} has no tokenizer.tiktoken or tokenizer.json", options.mesh.checkpoint.string());
  RowDefaults defaults;
  defaults.max_new_tokens = options.sample_tokens;
  defaults.temperature = options.sample_temperature;
  defaults.stop_tokens = {end_of_text};
  const RowContext context{defaults, job.config, job.tokenizer ? &*job.tokenizer : nullptr};
  for (const std::string& text : options.samples) {
    InputRow in = parse_row(Json{{"prompt", to_valid_utf8(text)}}.dump(), std::ssize(rows_), context);
    check(in.text.error.empty(), "--sample {}: {}", Json(to_valid_utf8(text)).dump(), in.text.error);
    rows_.push_back(std::move(in.row));
  }
}

bool TrainSamples::due(std::int64_t step, bool last) const { return !rows_.empty() && (last || (options_.sample_every > 0 && step % options_.sample_every == 0)); }

std::vector<TrainSample> TrainSamples::make(const Gpt& gpt, Communicator& ranks) const {
  std::vector<TrainSample> samples;
  for (const std::string& text : options_.samples) samples.push_back({to_valid_utf8(text), ""});
  GenerateOptions options;
  options.batch_size = count();
  options.seed = options_.rows.seed;
  options.sentinel = 0;  // the weights are to change
  Generator generator(gpt, &*job_.tokenizer, ranks, options);
  std::size_t next = 0;
  generator.run([&] { return next < rows_.size() ? std::optional(rows_[next++]) : std::nullopt; },
                [&](const Row& row, Completion&& completion) { samples[static_cast<std::size_t>(row.index)].completion = to_valid_utf8(completion.bytes); },
                [](const GenerateStats&) { return true; });
  return samples;
}

}  // namespace kvmesh
