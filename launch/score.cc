// kvmesh score: log-likelihoods of given completions.
#include "launch/commands.h"

#include "comm/sharding.h"
#include "launch/job/agree.h"
#include "launch/job/file.h"
#include "launch/job/job.h"
#include "launch/job/line_source.h"
#include "launch/job/output.h"
#include "launch/job/progress.h"
#include "model/score.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace kvmesh {
namespace {

// Lines to a file that appears when it is complete, or to standard output.
class ScoreFile {
 public:
  explicit ScoreFile(const std::filesystem::path& file) : file_(file == "-" ? "" : file) {
    if (file_.empty()) return;
    const bool device = std::filesystem::exists(file_) && !std::filesystem::is_regular_file(file_);  // or a pipe: never replaced
    temporary_ = device ? file_ : std::filesystem::path(file_.string() + ".tmp");
    stream_ = std::fopen(temporary_.c_str(), "w");
    check(stream_ != nullptr, "--output {}: {}", file_.string(), std::strerror(errno));
  }
  ~ScoreFile() {
    if (stream_ == stdout) return;
    std::fclose(stream_);
    if (temporary_ != file_) std::remove(temporary_.c_str());
  }
  void write(const std::string& line) {
    if (std::fprintf(stream_, "%s\n", line.c_str()) < 0) failed();
  }
  void finish() {
    if (std::fflush(stream_) != 0) failed();
    if (temporary_ != file_ && std::rename(temporary_.c_str(), file_.c_str()) != 0) failed();
  }

 private:
  [[noreturn]] void failed() const { fail(Fault::io, "{}: {}", file_.empty() ? "standard output" : file_.string(), std::strerror(errno)); }
  std::filesystem::path file_, temporary_;
  std::FILE* stream_ = stdout;
};

}  // namespace

int score_command(std::span<const std::string> args, ProcessGroup& group) {
  const bool first = group.rank() == 0;
  const std::optional<ScoreOptions> parsed = parse_score_options(args, first);
  if (!parsed) return 0;
  const MeshOptions& o = parsed->mesh;
  Job job(o, group);
  Communicator& ranks = group.world();
  job.open_chat(parsed->chat, o.checkpoint, ranks);
  LineSource lines(ranks, o.prompts);
  std::unique_ptr<ScoreFile> output;
  on_first_rank(ranks, [&] {
    check_distinct({{"prompts", o.prompts}, {"output", o.output}});
    output = std::make_unique<ScoreFile>(o.output);
  });
  const Gpt& gpt = job.load(o.checkpoint, group);
  Scorer scorer(gpt);
  Progress progress(first);
  const RowDefaults defaults;
  const RowContext context{defaults, job.config, job.tokenizer ? &*job.tokenizer : nullptr, job.chat ? &*job.chat : nullptr};

  // Blocks of rows; each block is split over the ranks by the batch axis, each rank's scores are gathered.
  std::int64_t count = 0, errors = 0, tokens = 0;
  for (bool more = true; more;) {
    std::vector<ScoreInputRow> block;
    std::vector<std::size_t> good;
    while (std::ssize(good) < o.batch_size && (more = [&] {
             const std::optional<std::string_view> line = lines.next();
             if (line) block.push_back(parse_score_row(*line, count++, context));
             return line.has_value();
           }())) {
      if (block.back().text.error.empty()) good.push_back(block.size() - 1);
    }
    const auto n = static_cast<std::int64_t>(good.size());
    const Range mine = split(n, ranks.size(), ranks.rank());
    std::vector<ScoreRow> rows;
    std::vector<std::int64_t> counts;
    for (int r = 0; r < ranks.size(); ++r) counts.push_back(split(n, ranks.size(), r).size());
    for (std::int64_t i = mine.begin; i < mine.end; ++i) {
      const ScoreInputRow& row = block[good[static_cast<std::size_t>(i)]];
      rows.push_back({row.prompt, row.completion});
    }
    const std::vector<Score> scores = scorer.run(rows);
    const Tensor own = host_tensor(DType::f64, {mine.size(), 2}), all = host_tensor(DType::f64, {n, 2});  // log-likelihood, greedy
    for (std::size_t i = 0; i < scores.size(); ++i) {
      own.data<double>()[2 * i] = scores[i].log_likelihood;
      own.data<double>()[2 * i + 1] = scores[i].greedy;
    }
    ranks.all_gather_ragged(own, counts, all);
    std::size_t next_good = 0;
    for (const ScoreInputRow& row : block) {
      if (!row.text.error.empty()) {
        ++errors;
        if (output) output->write(error_line(row.text));
        continue;
      }
      const double* score = all.data<double>() + 2 * next_good++;
      tokens += std::ssize(row.completion);
      if (output) output->write(score_line(row.text, score[0], std::ssize(row.completion), score[1] != 0));
    }
    progress.show({.rows = count, .tokens = tokens});
  }
  check(count > 0, "no input: {} has no rows", o.prompts.string());
  on_first_rank(ranks, [&] { output->finish(); });
  return errors ? 2 : 0;
}

}  // namespace kvmesh
