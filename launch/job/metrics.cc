// Lines of JSON, Prometheus' text format, and the closing table.
#include "launch/job/metrics.h"

#include "launch/job/agree.h"
#include "launch/job/file.h"
#include "launch/job/rows.h"
#include "runtime/say.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <utility>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

using Parts = std::array<std::pair<const char*, double>, 9>;

// The parts of a rank's wall time, in the order in which people read them. After the loop rank 0 writes and the others wait for it.
Parts parts_of(const TimeSplit& t, double start, double finish, bool writes) {
  return {{{"start", start},
           {"prefill", t.prefill},
           {"decode", t.decode},
           {"sampling", t.sampling},
           {"collectives", t.collectives},
           {"io", t.rows + (writes ? finish : 0)},
           {"idle", t.idle + (writes ? 0 : finish)},
           {"loop", t.host},
           {"compute", t.prefill + t.decode}}};
}
constexpr std::size_t disjoint = 8;  // of the parts: all but compute, which is the sum of two

double accounted(const Parts& parts) {
  double sum = 0;
  for (std::size_t i = 0; i < disjoint; ++i) sum += parts[i].second;
  return sum;
}

std::string prometheus_text(const GenerateStats& s, std::int64_t errors, std::span<const std::string> hosts, std::span<const Parts> ranks, bool last) {
  std::string out;
  const auto metric = [&](const char* name, const char* type, const char* help) { out += fmt::format("# HELP kvmesh_{0} {2}\n# TYPE kvmesh_{0} {1}\n", name, type, help); };
  const auto number = [&](const char* name, const char* type, const char* help, std::int64_t value) {
    metric(name, type, help);
    out += fmt::format("kvmesh_{} {}\n", name, value);
  };
  number("rows_finished_total", "counter", "Completions that this start of the job has finished.", s.rows);
  number("rows_failed_total", "counter", "Rows that could not be served.", errors);
  number("rows_in_flight", "gauge", "Rows in the cache of some rank.", last ? 0 : s.in_flight);
  number("new_tokens_total", "counter", "Tokens that were generated.", s.new_tokens);
  number("prompt_tokens_total", "counter", "Prompt tokens that went through the model.", s.prompt_tokens);
  number("dropped_draws_total", "counter", "Draws of rows that turned out to have stopped, enqueued before that was known.", s.dropped_draws);
  number("steps_total", "counter", "Steps of the loop that all ranks run together.", s.steps);
  number("ended", "gauge", "1 when this is the job's last word.", last);
  metric("rank_seconds_total", "counter", "A rank's wall time, by where it went.");
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    for (std::size_t i = 0; i < disjoint; ++i) {
      out += fmt::format("kvmesh_rank_seconds_total{{rank=\"{}\",host=\"{}\",part=\"{}\"}} {:.6f}\n", r, hosts[r], ranks[r][i].first, ranks[r][i].second);
    }
  }
  return out;
}

}  // namespace

Metrics::Metrics(const MetricsOptions& options, ProcessGroup& group) : options_(options), group_(group) {
  on_first_rank(group.world(), [&] {
    try {
      if (!options_.file.empty()) file_ = std::make_unique<File>(options_.file, O_WRONLY | O_CREAT | O_APPEND);
      if (const auto& file = options_.prometheus; !file.empty()) {
        check(!fs::exists(file) || fs::is_regular_file(file), "{}: is not a file that could be replaced", file.string());
        replace_file(file, "");
      }
    } catch (const Error& e) {
      fail(Fault::usage, "--{}: {}", file_ || options_.file.empty() ? "prometheus" : "metrics", e.what());
    }
  });
  constexpr std::int64_t length = 64;
  const Tensor name = host_tensor(DType::u8, {length}), names = host_tensor(DType::u8, {group.size(), length});
  auto* const text = reinterpret_cast<char*>(name.data<std::uint8_t>());
  if (::gethostname(text, length) != 0) text[0] = '\0';
  text[length - 1] = '\0';
  group.world().all_gather(name, names);
  for (int r = 0; r < group.size(); ++r) hosts_.emplace_back(reinterpret_cast<const char*>(names.data<std::uint8_t>() + r * length));
}

Metrics::~Metrics() = default;

double Metrics::wall_seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - group_.began()).count(); }

std::vector<double> Metrics::from_all(double value) {
  const Tensor mine(nullptr, &value, DType::f64, {1}), all = host_tensor(DType::f64, {group_.size(), 1});
  group_.world().all_gather(mine, all);
  const auto values = all.span<double>();
  return {values.begin(), values.end()};
}

void Metrics::begin() {
  start_ = from_all(wall_seconds());
  finish_.assign(start_.size(), 0);
  written_ = wall_seconds();
}

void Metrics::update(const GenerateStats& stats, std::int64_t errors) {
  if (group_.rank() != 0 || (options_.file.empty() && options_.prometheus.empty())) return;
  if (wall_seconds() - written_ >= options_.interval) write(stats, errors, false);
}

void Metrics::end(const GenerateStats& stats, std::int64_t errors, double finish_seconds) {
  finish_ = from_all(finish_seconds);
  wall_ = from_all(wall_seconds());
  on_first_rank(group_.world(), [&] { write(stats, errors, true); });
  if (group_.rank() == 0) print_table(stats);
}

void Metrics::write(const GenerateStats& s, std::int64_t errors, bool last) {
  const double now = wall_seconds();
  std::vector<Parts> ranks;
  for (std::size_t r = 0; r < hosts_.size(); ++r) ranks.push_back(parts_of(s.ranks[r], start_[r], finish_[r], r == 0));
  if (file_) {
    const auto unix_time = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    Json line = {{"time", unix_time}, {"wall_s", now}, {"last", last}, {"steps", s.steps}, {"rows_finished", s.rows}, {"error_rows", errors}, {"rows_in_flight", last ? 0 : s.in_flight},
                 {"prompt_tokens", s.prompt_tokens}, {"new_tokens", s.new_tokens}, {"dropped_draws", s.dropped_draws},
                 {"new_tokens_per_s", static_cast<double>(s.new_tokens - tokens_written_) / (now - written_)}, {"ranks", Json::array()}};
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      Json rank = {{"rank", r}, {"host", hosts_[r]}, {"wall_s", last ? wall_[r] : now}};
      for (const auto& [name, seconds] : ranks[r]) rank[fmt::format("{}_s", name)] = seconds;
      line["ranks"].push_back(std::move(rank));
    }
    file_->write(line.dump() + "\n");
  }
  if (!options_.prometheus.empty()) replace_file(options_.prometheus, prometheus_text(s, errors, hosts_, ranks, last));
  written_ = now;
  tokens_written_ = s.new_tokens;
}

void Metrics::print_table(const GenerateStats& s) const {
  constexpr std::size_t lines = 16;
  say("kvmesh: rank      wall     start   prefill    decode  sampling  collect.       I/O      idle      loop  of wall  host\n");
  for (std::size_t r = 0; r < hosts_.size() && r < lines; ++r) {
    const Parts parts = parts_of(s.ranks[r], start_[r], finish_[r], r == 0);
    std::string line = fmt::format("kvmesh: {:>4} {:>7.2f} s", r, wall_[r]);
    for (std::size_t i = 0; i < disjoint; ++i) line += fmt::format(" {:>7.1f} %", 100 * parts[i].second / wall_[r]);
    say("{} {:>6.1f} %  {}\n", line, 100 * accounted(parts) / wall_[r], hosts_[r]);
  }
  if (hosts_.size() > lines) say("kvmesh: … and {} more ranks (--metrics FILE has them all)\n", hosts_.size() - lines);
}

}  // namespace kvmesh
