// kvmesh doctor: what is wrong with a job, told before it starts. Takes generate's options.
#include "launch/commands.h"
#include "launch/job/agree.h"
#include "launch/job/checkup.h"
#include "launch/job/file.h"
#include "launch/job/journal.h"
#include "launch/job/output.h"
#include "model/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::seconds patience{20};               // of a rank for another
constexpr std::int64_t most_read = std::int64_t{1} << 30;  // bytes of a checkpoint, and of the prompts' file
constexpr std::int64_t rows_parsed = 1000;
constexpr std::size_t hash_digits = 16;  // enough to tell files apart

// What `body` throws becomes an error among the facts, with what to do about it.
template <typename Body>
void noting(Facts& facts, std::string_view todo, const Body& body) {
  try {
    body();
  } catch (const std::exception& e) {
    facts.errors.push_back(error_of(e).what() + std::string(todo));
  }
}

// Every rank reads its own view; the ranks of a host share what the system has cached.
void look_at_files(Facts& facts, const GenerateCommandOptions& o, const Job* job) {
  noting(facts, ". The checkpoint must be complete on every host", [&] {
    const fs::path& folder = o.mesh.checkpoint;
    const bool broadcast = o.mesh.load == "broadcast";  // then only the first host's weights count
    std::vector<fs::path> files;
    if (!broadcast) files = weight_files(folder);
    files.push_back(folder / "config.json");
    if (const fs::path tokenizer = tokenizer_file(folder); !tokenizer.empty()) files.push_back(tokenizer);
    if (o.chat.on) std::ranges::copy(chat_files(folder), std::back_inserter(files));
    if (job && (!broadcast || facts.host == 0)) find_params(SafetensorsFolder(folder), job->config);
    for (const fs::path& file : files) facts.files[file.filename().string()] = file_hash(file, most_read / std::ssize(files)).substr(0, hash_digits);
  });
  noting(facts, "", [&] {
    if (fs::is_regular_file(o.mesh.prompts)) facts.prompts = file_hash(o.mesh.prompts, most_read).substr(0, hash_digits);
  });
  noting(facts, "", [&] { facts.binary = file_hash("/proc/self/exe").substr(0, hash_digits); });
}

// Rank 0's look at the rows: can they be served, how many and how long are they, how much will be written?
void look_at_rows(Facts& facts, const GenerateCommandOptions& o, const Job& job) {
  const bool in_file = o.prompt.empty() && fs::is_regular_file(o.mesh.prompts);
  if (o.prompt.empty() && fs::exists(o.mesh.prompts) && !in_file && !fs::is_directory(o.mesh.prompts)) return;  // a pipe can be read only once
  const std::unique_ptr<Communicator> alone = make_self_communicator();
  LineSource lines = open_lines(o, job, *alone);
  const RowContext context{o.row, job.config, job.tokenizer ? &*job.tokenizer : nullptr, job.chat ? &*job.chat : nullptr};
  std::int64_t rows = 0, bytes = 0, bad = 0, longest = 0;
  std::string first_error;
  for (std::optional<std::string_view> line; bytes < most_read && (line = lines.next()); ++rows) {
    bytes += std::ssize(*line) + 1;
    if (rows >= rows_parsed) {
      longest = std::max(longest, std::min(job.config.seqlen, std::ssize(*line) + o.row.max_new_tokens));  // a token has a byte or more
      continue;
    }
    const InputRow row = parse_row(*line, rows, context);
    if (row.text.error.empty()) {
      longest = std::max(longest, std::min(job.config.seqlen, std::ssize(*row.row.prompt) + row.row.max_new_tokens));
    } else if (bad++ == 0) {
      first_error = fmt::format("row {}: {}", rows, row.text.error);
    }
  }
  const std::int64_t parsed = std::min(rows, rows_parsed);
  if (bad == parsed) facts.errors.push_back(fmt::format("none of the first {} rows can be served: {}", parsed, first_error));
  if (bad > 0 && bad < parsed) facts.warnings.push_back(fmt::format("{} of the first {} rows cannot be served, and come out as error lines: {}", bad, parsed, first_error));
  const double more = bytes < most_read || !in_file ? 1 : static_cast<double>(fs::file_size(o.mesh.prompts)) / static_cast<double>(bytes);  // what was not read is like what was
  facts.rows = static_cast<std::int64_t>(static_cast<double>(rows) * more) * o.generate.samples;
  facts.row_tokens = longest;
  if (o.generate.rng == Rng::jax && (bad > 0 || facts.rows > o.generate.batch_size)) {
    facts.errors.push_back(fmt::format("--rng jax draws over one batch of good rows, and here are {} for --batch-size {}", facts.rows, o.generate.batch_size));
  }
  const std::int64_t token_bytes = 12 + (o.generate.logprobs >= 0 ? 14 + 22 * o.generate.logprobs : 0);  // an id, its text, what comes with it
  facts.output_bytes = 2 * facts.rows * (bytes / std::max<std::int64_t>(rows, 1) + 64 + std::min(o.row.max_new_tokens, job.config.seqlen) * token_bytes);
}

// What is there of an earlier job, and of another that runs.
void look_at_earlier(Facts& facts, const GenerateCommandOptions& o, const Job& job) {
  const fs::path &file = o.mesh.output, journal = beside(file, ".journal");
  if (fs::exists(journal)) {
    const File in(journal, O_RDWR);
    check(::flock(in.fd(), LOCK_SH | LOCK_NB) == 0, "--output {}: another job is writing it. Wait for it, end it, or write elsewhere", file.string());
    ::flock(in.fd(), LOCK_UN);
    JournalReader reader(in);
    const std::optional<std::string_view> header = reader.header();
    if (o.fresh || !header) return;
    const Json was = Json::parse(*header, nullptr, false);
    check(was.is_object(), "{}: is not a kvmesh journal (--fresh starts over)", journal.string());
    const std::string d = difference(was, identity_of(o, job));
    check(d.empty(), "--output {}: was begun with {} (--fresh starts over)", file.string(), d);
  } else if (fs::exists(file) && !o.fresh && is_complete(file, identity_of(o, job))) {
    facts.warnings.push_back(fmt::format("--output {}: is complete, and generate will leave it as it is (--fresh starts over)", file.string()));
  }
}

// A file beside the output, for as long as it lives.
class Probe {
 public:
  explicit Probe(const fs::path& output) : file_(beside(output, ".doctor.tmp"), O_RDWR | O_CREAT | O_TRUNC) {}
  ~Probe() { ::unlink(file_.name().c_str()); }
  void fill(const std::string& text) const {
    file_.write(text);
    file_.sync();
  }

 private:
  File file_;
};

bool is_file(const fs::path& output) { return !output.empty() && output != "-" && (!fs::exists(output) || fs::is_regular_file(output) || fs::is_directory(output)); }

// Can rank 0 write, and do the others see it? Collective.
void look_at_output(Facts& facts, const GenerateCommandOptions* o, const Job* job, Communicator& ranks) {
  std::unique_ptr<Probe> probe;
  std::string text;  // as long as a disk is certainly asked for room, and like no other's
  bool asked = false;
  if (ranks.rank() == 0 && o) noting(facts, "", [&] { asked = is_file(o->mesh.output); });
  if (asked) {
    const fs::path& file = o->mesh.output;
    noting(facts, "", [&] {
      check(!fs::is_directory(file), "--output {}: is a folder", file.string());
      check(!o->prompt.empty() || fs::is_regular_file(o->mesh.prompts), "--prompts {}: is read again when the job goes on, and must be a file for --output {}", o->mesh.prompts.string(), file.string());
      if (job) look_at_earlier(facts, *o, *job);
    });
    try {
      probe = std::make_unique<Probe>(file);
      struct statvfs disk = {};
      if (::statvfs((file.has_parent_path() ? file.parent_path() : fs::path(".")).c_str(), &disk) == 0) facts.output_free = static_cast<std::int64_t>(disk.f_bavail * disk.f_frsize);
      text = fmt::format("{:>65536}", fmt::format("{} {}", ::getpid(), std::chrono::steady_clock::now().time_since_epoch().count()));
      probe->fill(text);
    } catch (const Error&) {
      facts.errors.push_back(fmt::format("--output {}: files beside it cannot be written: {}. Make room, or write elsewhere", file.string(), std::strerror(errno)));
      text.clear();
      facts.output_free = -1;
    }
  }
  broadcast_bytes(ranks, text);
  if (!text.empty() && ranks.rank() != 0 && o) {
    std::string seen;
    try {
      File(beside(o->mesh.output, ".doctor.tmp"), O_RDONLY).read_at(0, std::ssize(text), seen);
    } catch (const Error&) {
    }
    facts.sees_output = seen == text;
  }
  ranks.barrier();  // rank 0's file has been looked at
}

// Each rank's clock against rank 0's, which stamped between a rank's `before` and `after`; the closest of a few times counts. Collective.
double clock_ahead(Communicator& ranks) {
  const auto now = [] { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); };
  double ahead = 0, closest = 1e9;
  for (int i = 0; i < 5; ++i) {
    const Tensor mine = host_tensor(DType::f64, {1}), all = host_tensor(DType::f64, {ranks.size(), 1});
    const double before = now();
    ranks.barrier();
    mine.data<double>()[0] = now();
    ranks.all_gather(mine, all);
    const double after = now();
    if (after - before >= closest) continue;
    closest = after - before;
    ahead = (before + after) / 2 - all.data<double>()[0];
  }
  return ranks.rank() == 0 ? 0 : ahead;
}

std::string counted(std::size_t n, std::string_view what) { return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s"); }

void print_table(std::span<const Facts> all, const GenerateCommandOptions& o) {
  const Facts& first = all[0];
  std::map<int, std::vector<const Facts*>> hosts;
  for (const Facts& f : all) hosts[f.host].push_back(&f);
  fmt::print("kvmesh {} (build {}), {}: {} on {}\n", first.version, first.build, first.mpi, counted(all.size(), "rank"), counted(hosts.size(), "host"));
  for (const auto& [host, ranks] : hosts) {
    std::set<int> cpus;
    std::set<std::string> devices;
    std::size_t threads = 0;
    for (const Facts* f : ranks) {
      cpus.insert(f->cpus.begin(), f->cpus.end());
      if (!f->device.empty()) devices.insert(f->device);
      threads += static_cast<std::size_t>(std::max(0, f->threads));
    }
    fmt::print("  {}: {}, {} on {}, {}, {} of memory left{}\n", ranks[0]->host_name, counted(ranks.size(), "rank"), counted(threads, "thread"), counted(cpus.size(), "core"),
               devices.empty() ? "no device" : fmt::format("{}", fmt::join(devices, " and ")), size_text(ranks[0]->available),
               ranks[0]->gpus.empty() ? "" : ", " + counted(ranks[0]->gpus.size(), "GPU"));
  }
  if (first.weights >= 0) fmt::print("  weights {} a host, {} a row of {} tokens, {} rows at once\n", size_text(first.weights), size_text(first.row_bytes + first.seqlen * first.token_bytes), first.seqlen, o.generate.batch_size);
  if (first.rows >= 0) fmt::print("  {} completions to make, of up to {} tokens with their prompt\n", first.rows, first.row_tokens);
  if (first.output_free >= 0) fmt::print("  {} free for --output, up to {} needed\n", size_text(first.output_free), size_text(std::max<std::int64_t>(0, first.output_bytes)));
}

}  // namespace

int doctor_command(std::span<const std::string> args, ProcessGroup& group) {
  const bool first = group.rank() == 0;
  Communicator& ranks = group.world();
  Facts facts = look_around(group);
  std::optional<GenerateCommandOptions> options;
  bool help = false;
  noting(facts, "", [&] {
    options = parse_generate_options(args, first, "doctor");
    help = !options;
  });
  if (help) return 0;

  std::optional<Job> job;  // of all ranks, or none: they build it together
  if (largest(ranks, !options) == 0) noting(facts, "", [&] { job.emplace(options->mesh, group); });
  group.set_deadline(patience);  // not --comm-timeout: reading a checkpoint may take longer
  if (job) noting(facts, "", [&] { job->open_chat(options->chat, options->mesh.checkpoint, ranks); });
  if (job) noting(facts, "", [&] { settle_batch(*options, *job, facts, group); });
  if (job) add_job(facts, *options, *job, group);
  if (options) look_at_files(facts, *options, job ? &*job : nullptr);
  if (first && job && job->chat.has_value() == options->chat.on) noting(facts, "", [&] { look_at_rows(facts, *options, *job); });
  look_at_output(facts, options ? &*options : nullptr, job ? &*job : nullptr, ranks);
  facts.clock_ahead = clock_ahead(ranks);

  const std::vector<Facts> all = gather(facts, ranks);
  const std::vector<Finding> found = findings(all);
  const bool speaks = first && (group.size() > 1 || facts.told_rank <= 0);
  if (speaks && options) print_table(all, *options);
  if (speaks && found.empty()) fmt::print("all is well\n");
  on_first_rank(ranks, [&] {
    if (std::fflush(stdout) != 0) io_failed("standard output");
  });
  return tell(found, Severity::note, facts) ? 0 : 1;
}

}  // namespace kvmesh
