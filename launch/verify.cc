// kvmesh verify: computes a random part of a finished output's rows again and demands the same bytes.
#include "launch/commands.h"
#include "launch/job/agree.h"
#include "launch/job/file.h"
#include "launch/job/generation.h"
#include "launch/job/job.h"
#include "launch/job/output.h"
#include "runtime/noise.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

/// Which rows are computed again: a function of seed and index alone.
struct Choice {
  double fraction;
  std::uint32_t seed;
  bool operator()(std::int64_t index) const {
    return static_cast<double>(noise_bits(noise_key(seed), static_cast<std::uint64_t>(index))) < fraction * 4294967296.0;
  }
};

// Generate's command line again, from what the manifest has of it; `o` says what is otherwise now.
GenerateCommandOptions generate_options(const Json& manifest, const VerifyOptions& o) {
  const auto text = [](const Json& v) { return v.is_string() ? v.get<std::string>() : v.dump(); };
  std::vector<std::string> words;
  const auto path = [&](const char* name, const fs::path& given) {
    if (given.empty()) check(manifest.contains("paths") && manifest["paths"].contains(name), "does not say where --{} was: give it", name);
    words.push_back(fmt::format("--{}={}", name, given.empty() ? text(manifest["paths"][name]) : given.string()));
  };

  for (const auto& [key, v] : manifest["identity"].items()) {
    if (key == "kvmesh" || key == "build") continue;
    if (key == "checkpoint") {
      path("checkpoint", o.mesh.checkpoint);
    } else if (key == "prompts" && text(v).starts_with('[')) {
      check(o.mesh.prompts.empty(), "says that it was made of --prompt, not of --prompts {}", o.mesh.prompts.string());
      for (const Json& p : Json::parse(text(v))) words.push_back("--prompt=" + Json::parse(text(p))["prompt"].get<std::string>());
    } else if (key == "prompts") {
      path("prompts", o.mesh.prompts);
    } else if (key == "chat-template") {
      if (!v.is_null()) path("chat-template", o.chat_template);
    } else if (key == "device") {  // cpu/avx2: asked for was cpu
      const std::string kind = text(v);
      words.push_back("--device=" + kind.substr(0, kind.find('/')));
      if (kind.find("/cudnn") != std::string::npos && o.mesh.device != "cpu") words.push_back("--attention=cudnn");
    } else if (v.is_array()) {
      for (const Json& e : v) words.push_back(fmt::format("--{}={}", key, text(e)));
    } else if (v.is_boolean()) {
      if (v == true) words.push_back("--" + key);
    } else if (!(key == "logprobs" && v == -1)) {
      words.push_back(fmt::format("--{}={}", key, text(v)));
    }
  }
  GenerateCommandOptions g = parse_generate_options(words, false).value();
  if (o.mesh.device != "auto") g.mesh.device = o.mesh.device;
  if (o.mesh.attention != "auto") g.mesh.attention = o.mesh.attention;
  if (o.mesh.dtype != "auto") g.mesh.dtype = o.mesh.dtype;
  if (o.mesh.quantize != "none") g.mesh.quantize = o.mesh.quantize;
  g.mesh.mesh = o.mesh.mesh, g.mesh.threads = o.mesh.threads, g.mesh.comm_timeout = o.mesh.comm_timeout;
  g.mesh.batch_size = o.mesh.batch_size, g.mesh.share_gpus = o.mesh.share_gpus;
  g.mesh.load = o.mesh.load, g.mesh.pack_cache = o.mesh.pack_cache;
  if (g.generate.rng == Rng::jax && manifest.contains("lines")) g.mesh.batch_size = std::max(g.mesh.batch_size, manifest["lines"].get<std::int64_t>());
  g.generate.batch_size = g.mesh.batch_size;
  return g;
}

/// Chosen rows' lines, in any order, against those of the output, read once. Rank 0's.
class Comparison {
 public:
  Comparison(const fs::path& file, Choice chosen, std::int64_t samples) : file_(file), in_(file, std::ios::binary), chosen_(chosen), samples_(samples) {
    check(in_.good(), "--output {}: cannot be read", file_.string());
  }

  const std::string& difference() const { return difference_; }  ///< of the first row that differs; empty: none so far
  std::int64_t rows() const { return rows_; }                    ///< that have been compared

  void add(std::int64_t ordinal, std::int64_t span, const std::string& line) {
    waiting_.emplace(ordinal, std::pair(span, line));
    while (!waiting_.empty() && difference_.empty()) {
      if (!chosen_(next_ / samples_)) {
        skip_row();
      } else if (waiting_.begin()->first == next_) {
        const auto& [length, text] = waiting_.begin()->second;
        compare(text, length);
        next_ += length;
        rows_ += next_ % samples_ == 0;
        waiting_.erase(waiting_.begin());
      } else {
        return;
      }
    }
  }

  /// After the last line of `count` rows: the output ends there too.
  void finish(std::int64_t count) {
    while (next_ < count * samples_ && difference_.empty()) skip_row();
    if (difference_.empty() && in_.peek() != std::ifstream::traits_type::eof()) difference_ = fmt::format("has more lines than its {} rows make", count);
  }

 private:
  // With its line feed, if it has one.
  std::string read_line() {
    std::string line;
    if (std::getline(in_, line) && !in_.eof()) line.push_back('\n');
    ++line_;
    return line;
  }

  void skip_row() {
    std::int64_t lines = 1;
    for (std::int64_t i = 0; i < lines; ++i) {
      const std::string line = read_line();
      if (line.empty()) {
        difference_ = fmt::format("ends before row {}", next_ / samples_);
        return;
      }
      if (i > 0 || samples_ == 1) continue;
      const Json row = Json::parse(line, nullptr, false);  // an error line stands for all samples
      if (!row.contains("error")) lines = samples_;
    }
    next_ += samples_;
  }

  void compare(std::string now, std::int64_t span) {
    now += '\n';
    const std::string line = read_line();
    if (line == now) return;
    const auto at = std::mismatch(line.begin(), line.end(), now.begin(), now.end()).first - line.begin();
    const Json row = Json::parse(now, nullptr, false);
    difference_ = fmt::format("row {}{}{} is not what is computed now: line {} differs from byte {} on", next_ / samples_,
                              row.contains("id") ? ", id " + row["id"].dump(-1, ' ', false, Json::error_handler_t::replace) : "",
                              span < samples_ ? fmt::format(", sample {}", next_ % samples_) : "", line_, at + 1);
  }

  fs::path file_;
  std::ifstream in_;
  Choice chosen_;
  std::int64_t samples_;
  std::int64_t next_ = 0, line_ = 0, rows_ = 0;  // next_: ordinal of the line that is read next; line_: lines read
  std::map<std::int64_t, std::pair<std::int64_t, std::string>> waiting_;  // lines behind one that is not finished
  std::string difference_;
};

}  // namespace

int verify_command(std::span<const std::string> args, ProcessGroup& group) {
  const bool first = group.rank() == 0;
  const std::optional<VerifyOptions> parsed = parse_verify_options(args, first);
  if (!parsed) return 0;
  const VerifyOptions& v = *parsed;
  const fs::path& file = v.mesh.output;
  group.set_deadline(std::chrono::duration<double>(v.mesh.comm_timeout));
  Communicator& ranks = group.world();

  std::string manifest_text;
  on_first_rank(ranks, [&] {
    const Json manifest = read_manifest(file);
    check(fs::is_regular_file(file) && manifest.value("complete", Json()) == true, "--output {}: is not complete", file.string());
    manifest_text = manifest.dump();
  });
  broadcast_bytes(ranks, manifest_text);
  const Json manifest = Json::parse(manifest_text);
  const GenerateCommandOptions o = [&] {
    try {
      return generate_options(manifest, v);
    } catch (const std::exception& e) {  // also Json's
      fail(Fault::usage, "{}.manifest.json: {}", file.string(), e.what());
    }
  }();

  Job job(o.mesh, group);
  job.open_chat(o.chat, o.mesh.checkpoint, ranks);
  LineSource lines = open_lines(o, job, ranks);
  const Choice chosen{v.fraction, v.seed};
  const std::int64_t samples = o.generate.samples;
  std::unique_ptr<Comparison> comparison;
  on_first_rank(ranks, [&] {
    const std::string d = difference(manifest["identity"], identity_of(o, job));
    check(d.empty(), "--output {}: was made with {}", file.string(), d);
    comparison = std::make_unique<Comparison>(file, chosen, samples);
  });

  const Gpt& gpt = job.load(o.mesh.checkpoint, group);
  RowQueue rows(
      std::move(lines), o, job, [&](std::int64_t ordinal) { return chosen(ordinal / samples); },
      [&](std::int64_t ordinal, std::int64_t span, bool, const std::string& line) { comparison->add(ordinal, span, line); }, first);
  Progress progress(first);
  const GenerateStats stats = generate_rows(rows, gpt, job, ranks, o, [&](const GenerateStats& so_far) {
    progress.show(figures_of(so_far, rows));
    return !comparison || comparison->difference().empty();
  });
  on_first_rank(ranks, [&] {
    if (!stats.stopped) comparison->finish(rows.count());
    if (const std::string& d = comparison->difference(); !d.empty()) fail(Fault::rank, "{}: {}", file.string(), d);
    check(comparison->rows() > 0, "--fraction {} --seed {}: chooses none of the {} rows", v.fraction, v.seed, rows.count());
    fmt::print("verified {} of {} rows\n", comparison->rows(), rows.count());
    if (std::fflush(stdout) != 0) io_failed("standard output");
  });
  return 0;
}

}  // namespace kvmesh
