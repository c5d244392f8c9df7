// Tables, the fitted model, and gnuplot's input.
#include "launch/scale_report.h"

#include "launch/job/plots.h"
#include "runtime/check.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kind_names[] = {"strong", "weak", "sweep"};

struct Point {
  ScaleRun::Kind kind = ScaleRun::strong;
  int ranks = 1, on_host = 1;
  std::int64_t rows = 0;
  Estimate seconds, tokens_per_s, speedup, efficiency;
  double prefill = 0, step = 0;  // means of seconds: all prompts, a step with its sampling
  double steps = 0, jitter = 0;
  std::vector<std::pair<const char*, double>> split;  // of a rank's time
  CostModel::Parts predicted;
  bool held_out = false;
};

void write_file(const fs::path& file, const std::string& text) {
  std::ofstream out(file);
  out << text;
  if (!out.flush()) fail(Fault::io, "{}: cannot be written", file.string());
}

std::string with_interval(const Estimate& e, int digits) {
  return std::isfinite(e.half_width) ? fmt::format("{:.{}f} ± {:.{}f}", e.mean, digits, e.half_width, digits) : fmt::format("{:.{}f}", e.mean, digits);
}

Json json_of(const Estimate& e) { return {{"mean", e.mean}, {"half_width_95", std::isfinite(e.half_width) ? Json(e.half_width) : Json()}}; }

std::vector<Point> points_of(const ScaleResults& results) {
  std::map<std::tuple<ScaleRun::Kind, int, std::int64_t>, std::vector<const ScaleRun*>> groups;
  for (const ScaleRun& run : results.runs) groups[{run.kind, run.ranks, run.rows}].push_back(&run);
  std::vector<Point> points;
  for (const auto& [key, runs] : groups) {
    Point p;
    p.kind = std::get<0>(key);
    p.ranks = runs[0]->ranks;
    p.on_host = runs[0]->on_host;
    p.rows = runs[0]->rows;
    std::vector<double> seconds, rates;
    TimeSplit sum;
    for (const ScaleRun* run : runs) {
      seconds.push_back(run->seconds);
      rates.push_back(run->tokens / run->seconds);
      const auto n = static_cast<double>(runs.size());
      p.prefill += run->mean.prefill / n;
      p.step += (run->mean.decode + run->mean.sampling + run->mean.host) / run->steps / n;
      p.jitter += run->jitter / n;
      for (double TimeSplit::* part : {&TimeSplit::prefill, &TimeSplit::decode, &TimeSplit::sampling, &TimeSplit::collectives, &TimeSplit::idle, &TimeSplit::rows, &TimeSplit::host}) sum.*part += run->mean.*part;
    }
    p.steps = runs[0]->steps;
    p.seconds = estimate(seconds);
    p.tokens_per_s = estimate(rates);
    const double all = sum.prefill + sum.decode + sum.sampling + sum.collectives + sum.idle + sum.rows + sum.host;
    p.split = {{"compute", (sum.prefill + sum.decode) / all}, {"sampling", sum.sampling / all}, {"collectives", sum.collectives / all}, {"idle", sum.idle / all}, {"host", (sum.rows + sum.host) / all}};
    points.push_back(std::move(p));
  }
  for (Point& p : points) {
    for (const Point& one : points) {
      if (one.kind != p.kind || one.ranks != 1 || p.kind == ScaleRun::sweep) continue;
      p.speedup = &one == &p ? Estimate{1, 0} : ratio(p.tokens_per_s, one.tokens_per_s);
      p.efficiency = {p.speedup.mean / p.ranks, p.speedup.half_width / p.ranks};
    }
  }
  return points;
}

/// Fits on one rank's sweep without its middle number of rows, on the meetings, and, for ranks that share a host, on weak runs: without the most ranks, if there are others.
CostModel fit(std::vector<Point>& points, const ScaleResults& results) {
  CostModel model;
  std::vector<std::int64_t> swept;
  int most = 1;
  for (const Point& p : points) {
    if (p.kind == ScaleRun::sweep) swept.push_back(p.rows);
    most = std::max(most, p.ranks);
  }
  const bool between = std::any_of(points.begin(), points.end(), [&](const Point& p) { return p.on_host > 1 && p.ranks < most; });
  const auto tells_contention = [&](const Point& p) { return p.kind == ScaleRun::weak && p.on_host > 1 && (p.ranks < most || !between); };
  const std::int64_t held_rows = swept.size() > 2 ? swept[swept.size() / 2] : 0;
  std::vector<double> rows, prefill, step, jitter;
  for (Point& p : points) {
    p.held_out = p.kind == ScaleRun::sweep ? p.rows == held_rows : !tells_contention(p);
    if (p.kind != ScaleRun::sweep || p.held_out) continue;
    rows.push_back(static_cast<double>(p.rows));
    prefill.push_back(p.prefill);
    step.push_back(p.step);
    jitter.push_back(p.jitter);
  }
  model.prefill = fit_line(rows, prefill);
  model.step = fit_line(rows, step);
  std::sort(jitter.begin(), jitter.end());
  model.jitter = jitter.empty() ? 0 : jitter[jitter.size() / 2];
  double latency = 0;
  for (const auto& [n, seconds] : results.meetings) latency += seconds / std::ceil(std::log2(n)) / static_cast<double>(results.meetings.size());
  model.latency = latency;
  double slower = 0, count = 0;
  for (const Point& p : points) {
    if (!tells_contention(p)) continue;
    const CostModel::Parts alone = model.predict(p.ranks, 1, static_cast<double>(p.rows) / p.ranks, p.steps);
    slower += ((p.seconds.mean - alone.collectives - alone.idle) / alone.compute - 1) / (p.on_host - 1);
    ++count;
  }
  if (count > 0) model.contention = std::max(0.0, slower / count);
  for (Point& p : points) p.predicted = model.predict(p.ranks, p.on_host, std::ceil(static_cast<double>(p.rows) / p.ranks), p.steps);
  return model;
}

std::string table_of(const std::vector<Point>& points, ScaleRun::Kind kind) {
  std::string text = "| ranks | rows in all | seconds | new tokens/s | speed-up | efficiency | compute | sampling | collectives | idle | host |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
  for (const Point& p : points) {
    if (p.kind != kind) continue;
    text += fmt::format("| {} | {} | {} | {} | {} | {} |", p.ranks, p.rows, with_interval(p.seconds, 3), with_interval(p.tokens_per_s, 0), with_interval(p.speedup, 2), with_interval(p.efficiency, 2));
    for (const auto& [name, share] : p.split) text += fmt::format(" {:.1f} % |", 100 * share);
    text += '\n';
  }
  return text + '\n';
}

std::string plots_script() {
  return R"gp(# gnuplot plots.gp
set terminal svg size 720,420 font "sans,12" background rgb "white"
set offsets graph 0.04, graph 0.04, 0, 0
set grid ytics lc rgb "#dddddd"
set key top left
set style line 1 lc rgb "#1f77b4" pt 7 lw 2
set style line 2 lc rgb "#ff7f0e" pt 5 lw 2
set style line 3 lc rgb "#999999" dt 2 lw 1
set xlabel "ranks"
set xtics 1
set yrange [0:*]
set output "speed.svg"
set ylabel "new tokens a second"
stats "strong.dat" using 5 every ::0::0 nooutput name "S"
stats "weak.dat" using 5 every ::0::0 nooutput name "W"
plot "strong.dat" using 1:5:6 with yerrorlines ls 1 title "strong", "weak.dat" using 1:5:6 with yerrorlines ls 2 title "weak", \
     "strong.dat" using 1:(S_mean*$1) with lines ls 3 title "strong, ideal", "weak.dat" using 1:(W_mean*$1) with lines ls 3 title "weak, ideal"
set output "efficiency.svg"
set ylabel "efficiency (1: as many times as fast as there are ranks)"
set yrange [0:1.2]
plot "strong.dat" using 1:9:10 with yerrorlines ls 1 title "strong", "weak.dat" using 1:9:10 with yerrorlines ls 2 title "weak", 1 ls 3 title ""
set output "split.svg"
set ylabel "share of a rank's time, strong runs"
set offsets 0, 0, 0, 0
set style data histogram
set style histogram rowstacked
set style fill solid 0.9 border rgb "white"
set boxwidth 0.7
set yrange [0:1.3]
set key top horizontal
plot "strong.dat" using 11:xtic(1) title "compute", "" using 12 title "sampling", "" using 13 title "collectives", "" using 14 title "idle", "" using 15 title "host"
set key top left vertical
set offsets graph 0.04, graph 0.04, 0, 0
set output "latency.svg"
set xlabel "rows on a rank"
set xtics auto
set ylabel "decode step, ms"
set yrange [0:*]
plot "sweep.dat" using 1:2 with points ls 1 ps 1.2 title "measured", "sweep.dat" using 1:3 with lines ls 3 title "fitted"
set output "predicted.svg"
set xlabel "predicted seconds"
set ylabel "measured seconds"
set xrange [0:*]
plot "predicted.dat" using 1:2:3 with yerrorbars ls 1 title "all runs", "predicted.dat" using 1:($4 == 1 ? $2 : NaN) with points ls 2 ps 1.2 title "held out of the fit", x ls 3 title ""
)gp";
}

void write_data(const std::vector<Point>& points, const CostModel& model, const fs::path& folder) {
  const auto finite = [](double x) { return std::isfinite(x) ? x : 0; };
  std::string of_kind[2], sweep = "# rows, step ms measured, fitted\n", predicted = "# predicted, measured, ±, held out\n";
  for (std::string& text : of_kind) text = "# ranks, rows, seconds, ±, tokens/s, ±, speed-up, ±, efficiency, ±, compute, sampling, collectives, idle, host\n";
  for (const Point& p : points) {
    predicted += fmt::format("{} {} {} {}\n", p.predicted.seconds(), p.seconds.mean, finite(p.seconds.half_width), p.held_out ? 1 : 0);
    if (p.kind == ScaleRun::sweep) {
      sweep += fmt::format("{} {} {}\n", p.rows, 1e3 * p.step, 1e3 * model.step.at(static_cast<double>(p.rows)));
      continue;
    }
    std::string& text = of_kind[p.kind];
    text += fmt::format("{} {} {} {} {} {} {} {} {} {}", p.ranks, p.rows, p.seconds.mean, finite(p.seconds.half_width), p.tokens_per_s.mean, finite(p.tokens_per_s.half_width), p.speedup.mean,
                        finite(p.speedup.half_width), p.efficiency.mean, finite(p.efficiency.half_width));
    for (const auto& [name, share] : p.split) text += fmt::format(" {}", share);
    text += '\n';
  }
  write_file(folder / "strong.dat", of_kind[ScaleRun::strong]);
  write_file(folder / "weak.dat", of_kind[ScaleRun::weak]);
  write_file(folder / "sweep.dat", sweep);
  write_file(folder / "predicted.dat", predicted);
  write_file(folder / "plots.gp", plots_script());
}

}  // namespace

std::string write_scale_report(const ScaleResults& results, const fs::path& folder) {
  std::vector<Point> points = points_of(results);
  const CostModel model = fit(points, results);
  const Json& about = results.about;

  std::string text = fmt::format("# How this scales\n\nkvmesh {}, {}, {} host{}; prompts of {} tokens, {} new tokens a row, {} repeats in shuffled order after a warm-up.\n"
                                 "± is half of a 95 % confidence interval (Student's t over the repeats; of ratios by first-order propagation).\n\n",
                                 about["kvmesh"].get<std::string>(), about["device"].get<std::string>(), results.hosts, results.hosts == 1 ? "" : "s", about["prompt_len"].dump(), about["new_tokens"].dump(), about["repeat"].dump());
  text += "Model: `" + about["model"].dump() + "`\n\n## Strong: the same rows on more ranks\n\n" + table_of(points, ScaleRun::strong) + "![tokens a second](speed.svg) ![efficiency](efficiency.svg) ![time](split.svg)\n\n";
  text += "## Weak: as many rows on every rank\n\n" + table_of(points, ScaleRun::weak) + "## Cost model\n\n";
  text += fmt::format("A run of b rows on the busiest rank takes (prefill(b) + steps · step(b)) · (1 + c · (ranks of its host − 1)) + rounds · (L · ⌈log₂ n⌉ + √4 · jitter · E[largest of n]), a round being 4 steps:\n\n"
                      "* prefill(b) = {:.3f} ms + {:.3f} ms · b, step(b) = {:.3f} ms + {:.4f} ms · b: least squares on one rank alone\n* contention c = {:.3f} a rank that shares the host: weak runs that are not marked as held out\n"
                      "* L = {:.1f} µs: all_gather of 1 KiB a rank, median, over ⌈log₂ n⌉\n* jitter = {:.3f} ms: standard deviation of one rank's steps\n\n![latency](latency.svg) ![predicted](predicted.svg)\n\n",
                      1e3 * model.prefill.at_zero, 1e3 * model.prefill.slope, 1e3 * model.step.at_zero, 1e3 * model.step.slope, model.contention, 1e6 * model.latency, 1e3 * model.jitter);
  text += "| run | ranks | rows | predicted | measured | measured / predicted | |\n|---|---|---|---|---|---|---|\n";
  for (const Point& p : points) {
    text += fmt::format("| {} | {} | {} | {:.3f} s | {} s | {:.2f} | {} |\n", kind_names[p.kind], p.ranks, p.rows, p.predicted.seconds(), with_interval(p.seconds, 3), p.seconds.mean / p.predicted.seconds(),
                        p.held_out ? "held out of the fit" : "");
  }
  int on_host = 1;
  std::int64_t per_rank = 1;
  const Point* last = nullptr;
  for (const Point& p : points) {
    on_host = std::max(on_host, p.on_host);
    if (p.kind == ScaleRun::weak) per_rank = p.rows / p.ranks, last = &p;
  }
  constexpr int largest = 4096;
  const std::int64_t strong_rows = per_rank * largest;
  text += fmt::format("\n## Extrapolated\n\nAssumed: hosts as these, with {} rank{} each; rows of one length; a network on which a meeting of two ranks takes as long as here and one of n ranks ⌈log₂ n⌉ times that; rounds that\n"
                      "differ independently between ranks, normally distributed; times that go on along the fitted lines, also where they are asked for more rows than were measured. Nothing of this was\n"
                      "measured, and no interval is given. Weak: {} rows a rank; strong: {} rows in all.\n\n"
                      "| ranks | weak: seconds | efficiency | collectives and idle | strong: seconds | efficiency |\n|---|---|---|---|---|---|\n",
                      on_host, on_host == 1 ? "" : "s", per_rank, strong_rows);
  Json extrapolated = Json::array();
  for (int n = 1; last && n <= largest; n *= 4) {
    const int sharing = std::min(n, on_host);
    const CostModel::Parts one = model.predict(1, 1, static_cast<double>(per_rank), last->steps), weak = model.predict(n, sharing, static_cast<double>(per_rank), last->steps),
                           all = model.predict(1, 1, static_cast<double>(strong_rows), last->steps),
                           strong = model.predict(n, sharing, static_cast<double>(strong_rows / n), last->steps);
    text += fmt::format("| {} | {:.3f} | {:.2f} | {:.1f} % | {:.3f} | {:.2f} |\n", n, weak.seconds(), one.seconds() / weak.seconds(), 100 * (weak.collectives + weak.idle) / weak.seconds(), strong.seconds(),
                        all.seconds() / strong.seconds() / n);
    extrapolated.push_back({{"ranks", n}, {"weak_seconds", weak.seconds()}, {"weak_efficiency", one.seconds() / weak.seconds()}, {"strong_seconds", strong.seconds()}, {"strong_efficiency", all.seconds() / strong.seconds() / n}});
  }

  Json json = {{"about", about},
               {"model", {{"prefill_seconds", {model.prefill.at_zero, model.prefill.slope}}, {"step_seconds", {model.step.at_zero, model.step.slope}}, {"contention", model.contention}, {"latency_seconds", model.latency}, {"jitter_seconds", model.jitter}}},
               {"points", Json::array()}, {"extrapolated", extrapolated}};
  for (const Point& p : points) {
    Json split;
    for (const auto& [name, share] : p.split) split[name] = share;
    json["points"].push_back({{"kind", kind_names[p.kind]}, {"ranks", p.ranks}, {"rows", p.rows}, {"seconds", json_of(p.seconds)}, {"tokens_per_s", json_of(p.tokens_per_s)}, {"speedup", json_of(p.speedup)},
                              {"efficiency", json_of(p.efficiency)}, {"step_seconds", p.step}, {"split", split}, {"predicted_seconds", p.predicted.seconds()}, {"held_out", p.held_out}});
  }
  write_file(folder / "report.md", text);
  write_file(folder / "report.json", json.dump(2) + "\n");
  write_data(points, model, folder);
  if (draw_plots(folder)) return "";
  return fmt::format("the plots were not drawn: is gnuplot installed (Debian: gnuplot-nox)? `gnuplot plots.gp` in {} draws them", folder.string());
}

}  // namespace kvmesh
