// Tables, the fitted model, and gnuplot's input.
#include "launch/scale_report.h"

#include "launch/job/plots.h"
#include "runtime/check.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <fstream>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kind_names[] = {"strong", "weak", "sweep"};

void write_file(const fs::path& file, const std::string& text) {
  std::ofstream out(file);
  out << text;
  if (!out.flush()) fail(Fault::io, "{}: cannot be written", file.string());
}

std::string with_interval(const Estimate& e, int digits) {
  return std::isfinite(e.half_width) ? fmt::format("{:.{}f} ± {:.{}f}", e.mean, digits, e.half_width, digits) : fmt::format("{:.{}f}", e.mean, digits);
}

Json json_of(const Estimate& e) { return {{"mean", e.mean}, {"half_width_95", std::isfinite(e.half_width) ? Json(e.half_width) : Json()}}; }

std::string table_of(const std::vector<ScalePoint>& points, ScaleRun::Kind kind) {
  std::string text = "| ranks | rows in all | seconds | new tokens/s | speed-up | efficiency | compute | sampling | collectives | idle | host |\n|---|---|---|---|---|---|---|---|---|---|---|\n";
  for (const ScalePoint& p : points) {
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

void write_data(const std::vector<ScalePoint>& points, const CostModel& model, const fs::path& folder) {
  const auto finite = [](double x) { return std::isfinite(x) ? x : 0; };
  std::string of_kind[2], sweep = "# rows, step ms measured, fitted\n", predicted = "# predicted, measured, ±, held out\n";
  for (std::string& text : of_kind) text = "# ranks, rows, seconds, ±, tokens/s, ±, speed-up, ±, efficiency, ±, compute, sampling, collectives, idle, host\n";
  for (const ScalePoint& p : points) {
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
  std::vector<ScalePoint> points = points_of(results.runs);
  const CostModel model = fit(points, results.meetings);
  const Json& about = results.about;

  std::string text = fmt::format("# How this scales\n\nkvmesh {}, {}, {} host{}; prompts of {} tokens, {} new tokens a row, {} repeats in shuffled order after a warm-up.\n"
                                 "± is half of a 95 % confidence interval (Student's t over the repeats; of ratios by first-order propagation).\n\n",
                                 about["kvmesh"].get<std::string>(), about["device"].get<std::string>(), results.hosts, results.hosts == 1 ? "" : "s", about["prompt_len"].dump(), about["new_tokens"].dump(), about["repeat"].dump());
  text += "Model: `" + about["model"].dump() + "`\n\n## Strong: the same rows on more ranks\n\n" + table_of(points, ScaleRun::strong) + "![tokens a second](speed.svg) ![efficiency](efficiency.svg) ![time](split.svg)\n\n";
  text += "## Weak: as many rows on every rank\n\n" + table_of(points, ScaleRun::weak) + "## Cost model\n\n";
  text += fmt::format("A run of b rows on the busiest rank takes (prefill(b) + steps · step(b)) · (1 + c · (ranks of its host − 1)) + rounds · (L · ⌈log₂ n⌉ + (n − 1) · ({:.0f} + {:.0f} · b) bytes / B + √4 · jitter · E[largest of n]), a round being 4 steps:\n\n"
                      "* prefill(b) = {:.3f} ms + {:.3f} ms · b, step(b) = {:.3f} ms + {:.4f} ms · b: least squares on one rank alone\n* contention c = {:.3f} a rank that shares the host: weak runs that are not marked as held out\n"
                      "* L = {:.1f} µs, B = {}: medians of all_gather with 1 to 512 KiB a rank, least squares of relative errors\n* jitter = {:.3f} ms: standard deviation of one rank's steps\n\n![latency](latency.svg) ![predicted](predicted.svg)\n\n",
                      model.bytes_per_rank, model.round * model.bytes_per_row, 1e3 * model.prefill.at_zero, 1e3 * model.prefill.slope, 1e3 * model.step.at_zero, 1e3 * model.step.slope, model.contention, 1e6 * model.latency,
                      model.seconds_per_byte > 0 ? fmt::format("{:.2f} GB/s", 1e-9 / model.seconds_per_byte) : "too much to be seen", 1e3 * model.jitter);
  text += "| run | ranks | rows | predicted | measured | measured / predicted | |\n|---|---|---|---|---|---|---|\n";
  for (const ScalePoint& p : points) {
    text += fmt::format("| {} | {} | {} | {:.3f} s | {} s | {:.2f} | {} |\n", kind_names[p.kind], p.ranks, p.rows, p.predicted.seconds(), with_interval(p.seconds, 3), p.seconds.mean / p.predicted.seconds(),
                        p.held_out ? "held out of the fit" : "");
  }
  int on_host = 1;
  for (const ScalePoint& p : points) on_host = std::max(on_host, p.on_host);
  const std::vector<Extrapolated> more = extrapolate(results, 4096);
  text += fmt::format("\n## Extrapolated\n\nAssumed: hosts as these, with {} rank{} each; rows of one length; a network on which a meeting of two ranks takes as long as here and one of n ranks ⌈log₂ n⌉ times that, and what\n"
                      "each has to say reaches a rank one after another at the rate B; rounds that differ independently between ranks, normally distributed; times that go on along the fitted lines, also where they are\n"
                      "asked for more rows than were measured. Nothing of this was measured. The intervals are what the repeats' spread makes of the fit (95 % of 1000 fits to repeats drawn anew); they know nothing of\n"
                      "assumptions that do not hold.{}\n\n"
                      "| ranks | weak: seconds | efficiency | 95 % | collectives | idle | strong: seconds | efficiency | 95 % |\n|---|---|---|---|---|---|---|---|---|\n",
                      on_host, on_host == 1 ? "" : "s", more.empty() ? "" : fmt::format(" Weak: {} rows a rank; strong: {} rows in all.", more[0].rows_a_rank, more[0].rows));
  Json extrapolated = Json::array();
  for (const Extrapolated& e : more) {
    text += fmt::format("| {} | {:.3f} | {:.2f} | {:.2f} … {:.2f} | {:.1f} % | {:.1f} % | {:.3f} | {:.2f} | {:.2f} … {:.2f} |\n", e.ranks, e.weak.seconds(), e.weak_efficiency, e.weak_interval.low, e.weak_interval.high,
                        100 * e.weak.collectives / e.weak.seconds(), 100 * e.weak.idle / e.weak.seconds(), e.strong.seconds(), e.strong_efficiency, e.strong_interval.low, e.strong_interval.high);
    extrapolated.push_back({{"ranks", e.ranks}, {"weak_seconds", e.weak.seconds()}, {"weak_efficiency", e.weak_efficiency}, {"weak_efficiency_95", {e.weak_interval.low, e.weak_interval.high}},
                            {"strong_seconds", e.strong.seconds()}, {"strong_efficiency", e.strong_efficiency}, {"strong_efficiency_95", {e.strong_interval.low, e.strong_interval.high}}});
  }

  Json json = {{"about", about},
               {"model", {{"prefill_seconds", {model.prefill.at_zero, model.prefill.slope}}, {"step_seconds", {model.step.at_zero, model.step.slope}}, {"contention", model.contention}, {"latency_seconds", model.latency}, {"seconds_per_byte", model.seconds_per_byte}, {"jitter_seconds", model.jitter}}},
               {"points", Json::array()}, {"extrapolated", extrapolated}};
  for (const ScalePoint& p : points) {
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
