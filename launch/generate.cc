// kvmesh generate: a file of prompts in, a file of completions out.
#include "launch/commands.h"
#include "launch/job/agree.h"
#include "launch/job/job.h"
#include "launch/job/line_source.h"
#include "launch/job/output.h"
#include "launch/job/progress.h"
#include "launch/job/signals.h"
#include "launch/version.h"
#include "model/generate.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <unordered_map>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr int exit_error_rows = 2, exit_stopped = 75;

// Everything that the output's bytes depend on. Batch size, mesh, sync, padding and threads are not among it.
Json identity_of(const GenerateCommandOptions& o, const Job& job, const std::string& prompts_hash) {
  const RowDefaults& r = o.row;
  return {{"kvmesh", version_text()}, {"device", job.device->kind()}, {"dtype", name_of(job.dtype)},
          {"checkpoint", checkpoint_hash(o.mesh.checkpoint)}, {"prompts", prompts_hash},
          {"max-new-tokens", r.max_new_tokens}, {"temperature", r.temperature}, {"top-k", r.top_k}, {"top-p", r.top_p}, {"min-p", r.min_p},
          {"stop", r.stop}, {"stop-token", r.stop_tokens}, {"ignore-eos", r.ignore_eos},
          {"seed", o.generate.seed}, {"rng", o.generate.rng == Rng::row ? "row" : "jax"}, {"samples", o.generate.samples}, {"logprobs", o.generate.logprobs}};
}

std::vector<std::string> prompt_lines(const std::vector<std::string>& prompts) {
  std::vector<std::string> lines;
  for (const std::string& p : prompts) lines.push_back(Json{{"prompt", to_valid_utf8(p)}}.dump());
  return lines;
}

// The job's rows: read, checked, expanded into samples, without those that an earlier start has finished. The same on every rank.
class Rows {
 public:
  Rows(LineSource lines, const GenerateCommandOptions& options, const Job& job, std::vector<bool> done, Output* output)
      : lines_(std::move(lines)), options_(options), context_{options.row, job.config, job.tokenizer ? &*job.tokenizer : nullptr}, done_(std::move(done)), output_(output) {}

  std::int64_t errors = 0;  ///< rows that could not be served, in this start
  std::int64_t total() const { return exhausted_ ? entered_ : -1; }

  std::optional<Row> next() {
    const std::int64_t samples = options_.generate.samples;
    for (;;) {
      while (sample_ < samples) {
        const std::int64_t ordinal = row_.index * samples + sample_;
        Row row = row_;
        row.sample = sample_++;
        if (is_done(ordinal)) continue;
        ++texts_[row.index].second;
        ++entered_;
        return row;
      }
      const std::optional<std::string_view> line = lines_.next();
      exhausted_ = !line;
      if (!line) return std::nullopt;
      const std::int64_t index = count_++;
      if (all_done(index)) continue;
      InputRow in = parse_row(*line, index, context_);
      if (!in.text.error.empty()) {
        check(options_.generate.rng == Rng::row, "row {}: {} (--rng jax serves all rows or none)", index, in.text.error);
        ++errors;
        if (output_) output_->add(index * samples, samples, true, error_line(in.text));
        continue;
      }
      if (options_.generate.rng == Rng::jax) check_jax(in.row);
      row_ = std::move(in.row);
      sample_ = 0;
      texts_.emplace(index, std::pair(std::move(in.text), 0));
    }
  }

  void finished(const Row& row, const Completion& completion) {
    const auto it = texts_.find(row.index);
    if (output_) {
      output_->add(row.index * options_.generate.samples + row.sample, 1, false,
                   completion_line(it->second.first, completion, context_.tokenizer != nullptr, options_.generate, row.sample));
    }
    if (--it->second.second == 0 && !(row_.index == row.index && sample_ < options_.generate.samples)) texts_.erase(it);
  }

 private:
  bool is_done(std::int64_t ordinal) const { return ordinal < std::ssize(done_) && done_[static_cast<std::size_t>(ordinal)]; }
  bool all_done(std::int64_t index) const {
    for (std::int64_t s = 0; s < options_.generate.samples; ++s) {
      if (!is_done(index * options_.generate.samples + s)) return false;
    }
    return true;
  }
  void check_jax(const Row& row) const {
    check(!row.seed, "row {}: a row's own \"seed\" has no meaning with --rng jax", row.index);
    check(row.index * options_.generate.samples + options_.generate.samples <= options_.generate.batch_size,
          "--rng jax draws over one batch: there are more rows than --batch-size {}", options_.generate.batch_size);
  }

  LineSource lines_;
  const GenerateCommandOptions& options_;
  RowContext context_;
  std::vector<bool> done_;
  Output* output_;
  std::int64_t count_ = 0, entered_ = 0;
  bool exhausted_ = false;
  Row row_;
  std::int64_t sample_ = std::int64_t{1} << 62;  // of row_, the next; none yet
  std::unordered_map<std::int64_t, std::pair<RowText, int>> texts_;  // of rows in flight, with how many samples are
};

// The finished set of an earlier start, from rank 0 to all.
std::vector<bool> share_done(Communicator& ranks, const Output* output) {
  std::string bytes;
  if (output) {
    for (const bool b : output->done()) bytes.push_back(b);
  }
  broadcast_bytes(ranks, bytes);
  return {bytes.begin(), bytes.end()};
}

void print_summary(const GenerateStats& s, std::int64_t errors, double seconds) {
  const auto rate = [](std::int64_t n, double t) { return t > 0 ? static_cast<double>(n) / t : 0.0; };
  fmt::print(stderr, "kvmesh: {} rows{} in {:.2f} s; prefill {} tokens at {:.0f}/s, decode {} tokens at {:.0f}/s, all {:.0f} new tokens/s; first token after {:.0f} ms\n",
             s.rows, errors ? fmt::format(" and {} error rows", errors) : "", seconds, s.prompt_tokens, rate(s.prompt_tokens, s.prefill_seconds), s.decode_tokens,
             rate(s.decode_tokens, s.decode_seconds), rate(s.new_tokens, seconds), s.rows ? 1e3 * s.first_token_seconds / static_cast<double>(s.rows) : 0.0);
}

}  // namespace

int generate_command(std::span<const std::string> args, ProcessGroup& group) {
  const auto begun = std::chrono::steady_clock::now();
  const bool first = group.rank() == 0;
  const std::optional<GenerateCommandOptions> parsed = parse_generate_options(args, first);
  if (!parsed) return 0;
  const GenerateCommandOptions& o = *parsed;
  Job job(o.mesh, group);
  check(job.tokenizer || o.row.stop.empty(), "--stop: {} has no tokenizer.tiktoken", o.mesh.checkpoint.string());
  for (const std::int32_t id : o.row.stop_tokens) check(id >= 0 && id < job.config.vocab_size, "--stop-token {}: outside the vocabulary of {}", id, job.config.vocab_size);
  check(o.generate.logprobs <= job.config.vocab_size, "--logprobs {}: more than the vocabulary of {}", o.generate.logprobs, job.config.vocab_size);

  Communicator& ranks = group.world();
  LineSource lines = o.prompt.empty() ? LineSource(ranks, o.mesh.prompts) : LineSource(ranks, prompt_lines(o.prompt));
  check(!lines.at_end(), "no input: {} has no rows", o.mesh.prompts.string());
  std::unique_ptr<Output> output;  // rank 0's
  bool complete = false;
  on_first_rank(ranks, [&] {
    const fs::path& file = o.mesh.output;
    if (file.empty() || file == "-" || (fs::exists(file) && !fs::is_regular_file(file) && !fs::is_directory(file))) {
      std::FILE* const stream = file.empty() || file == "-" ? stdout : std::fopen(file.c_str(), "w");
      check(stream != nullptr, "--output {}: {}", file.string(), std::strerror(errno));
      output = make_stream_output(stream, stream == stdout ? "standard output" : file.string());
      return;
    }
    check(!o.prompt.empty() || fs::is_regular_file(o.mesh.prompts), "--prompts {}: is read again when the job goes on, and must be a file for --output {}",
          o.mesh.prompts.string(), file.string());
    const Json identity = identity_of(o, job, o.prompt.empty() ? file_hash(o.mesh.prompts) : Json(o.prompt).dump());
    complete = !o.fresh && is_complete(file, identity);
    if (!complete) output = make_file_output(file, identity, o.fresh);
  });
  if (from_first_rank(ranks, complete)) {
    if (first) fmt::print(stderr, "kvmesh: {} is complete\n", o.mesh.output.string());
    return 0;
  }

  const Gpt& gpt = job.load(o.mesh.checkpoint, group);
  Rows rows(std::move(lines), o, job, share_done(ranks, output.get()), output.get());
  std::vector<Row> batch;  // --rng jax: all rows, so that what it cannot serve is told before anything is generated
  if (o.generate.rng == Rng::jax) {
    while (std::optional<Row> row = rows.next()) batch.push_back(std::move(*row));
  }
  std::size_t taken = 0;
  const auto next = [&]() -> std::optional<Row> {
    if (o.generate.rng == Rng::row) return rows.next();
    return taken < batch.size() ? std::optional(std::move(batch[taken++])) : std::nullopt;
  };
  Progress progress(first);
  bool stopped = false;
  std::int64_t finished = 0, new_tokens = 0;
  Generator generator(gpt, job.tokenizer ? &*job.tokenizer : nullptr, ranks, o.generate);
  const GenerateStats stats = generator.run(
      next,
      [&](const Row& row, Completion&& completion) {
        rows.finished(row, completion);
        ++finished, new_tokens += std::ssize(completion.tokens);
      },
      [&] {
        stopped = largest(ranks, stop_requested()) != 0;
        if (output) output->commit();
        progress.show(finished, rows.total(), new_tokens);
        return !stopped;
      });

  std::int64_t errors = rows.errors;
  on_first_rank(ranks, [&] {
    errors += output->errors_before();
    if (stopped) return;
    output->finish();
  });
  errors = from_first_rank(ranks, errors);
  if (first) {
    print_summary(stats, errors, std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count());
    if (stopped) fmt::print(stderr, "kvmesh: stopped by a signal; the same command goes on\n");
  }
  return stopped ? exit_stopped : errors ? exit_error_rows : 0;
}

}  // namespace kvmesh
