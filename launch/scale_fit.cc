// Points, the fit, and what it says of more ranks.
#include "launch/scale_fit.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <tuple>

namespace kvmesh {

std::vector<ScalePoint> points_of(const std::vector<ScaleRun>& all_runs) {
  std::map<std::tuple<ScaleRun::Kind, int, std::int64_t>, std::vector<const ScaleRun*>> groups;
  for (const ScaleRun& run : all_runs) groups[{run.kind, run.ranks, run.rows}].push_back(&run);
  std::vector<ScalePoint> points;
  for (const auto& [key, runs] : groups) {
    ScalePoint p;
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
  for (ScalePoint& p : points) {
    for (const ScalePoint& one : points) {
      if (one.kind != p.kind || one.ranks != 1 || p.kind == ScaleRun::sweep) continue;
      p.speedup = &one == &p ? Estimate{1, 0} : ratio(p.tokens_per_s, one.tokens_per_s);
      p.efficiency = {p.speedup.mean / p.ranks, p.speedup.half_width / p.ranks};
    }
  }
  return points;
}

CostModel fit(std::vector<ScalePoint>& points, const std::vector<Meeting>& meetings) {
  CostModel model;
  std::vector<std::int64_t> swept;
  int most = 1;
  for (const ScalePoint& p : points) {
    if (p.kind == ScaleRun::sweep) swept.push_back(p.rows);
    most = std::max(most, p.ranks);
  }
  const bool between = std::any_of(points.begin(), points.end(), [&](const ScalePoint& p) { return p.on_host > 1 && p.ranks < most; });
  const auto tells_contention = [&](const ScalePoint& p) { return p.kind == ScaleRun::weak && p.on_host > 1 && (p.ranks < most || !between); };
  const std::int64_t held_rows = swept.size() > 2 ? swept[swept.size() / 2] : 0;
  std::vector<double> rows, prefill, step, jitter;
  for (ScalePoint& p : points) {
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
  std::vector<double> meets, carried, seconds;
  for (const Meeting& m : meetings) {
    meets.push_back(std::ceil(std::log2(m.ranks)));
    carried.push_back((m.ranks - 1) * m.bytes);
    seconds.push_back(m.seconds);
  }
  const Plane meeting = fit_plane(meets, carried, seconds);
  model.latency = meeting.a_slope;
  model.seconds_per_byte = meeting.b_slope;
  double slower = 0, count = 0;
  for (const ScalePoint& p : points) {
    if (!tells_contention(p)) continue;
    const CostModel::Parts alone = model.predict(p.ranks, 1, static_cast<double>(p.rows) / p.ranks, p.steps);
    slower += ((p.seconds.mean - alone.collectives - alone.idle) / alone.compute - 1) / (p.on_host - 1);
    ++count;
  }
  if (count > 0) model.contention = std::max(0.0, slower / count);
  for (ScalePoint& p : points) p.predicted = model.predict(p.ranks, p.on_host, std::ceil(static_cast<double>(p.rows) / p.ranks), p.steps);
  return model;
}

namespace {

/// As many runs of every point as there were, drawn with replacement.
std::vector<ScaleRun> drawn_anew(const std::map<std::tuple<ScaleRun::Kind, int, std::int64_t>, std::vector<ScaleRun>>& groups, std::mt19937& random) {
  std::vector<ScaleRun> runs;
  for (const auto& [key, group] : groups) {
    for (std::size_t i = 0; i < group.size(); ++i) runs.push_back(group[random() % group.size()]);  // the same with every standard library
  }
  return runs;
}

/// Without intervals.
std::vector<Extrapolated> extrapolated_from(const std::vector<ScaleRun>& runs, const std::vector<Meeting>& meetings, int largest) {
  std::vector<ScalePoint> points = points_of(runs);
  const CostModel model = fit(points, meetings);
  int on_host = 1;
  const ScalePoint* last = nullptr;  // the weak run on the most ranks
  for (const ScalePoint& p : points) {
    on_host = std::max(on_host, p.on_host);
    if (p.kind == ScaleRun::weak) last = &p;
  }
  std::vector<Extrapolated> all;
  for (int n = 1; last && n <= largest; n *= 4) {
    Extrapolated e;
    e.ranks = n;
    e.rows_a_rank = last->rows / last->ranks;
    e.rows = e.rows_a_rank * largest;
    const auto predict = [&](int ranks, std::int64_t rows) { return model.predict(ranks, std::min(ranks, on_host), static_cast<double>(rows), last->steps); };
    e.weak = predict(n, e.rows_a_rank);
    e.strong = predict(n, e.rows / n);
    e.weak_efficiency = predict(1, e.rows_a_rank).seconds() / e.weak.seconds();
    e.strong_efficiency = predict(1, e.rows).seconds() / e.strong.seconds() / n;
    all.push_back(e);
  }
  return all;
}

}  // namespace

std::vector<Extrapolated> extrapolate(const ScaleResults& results, int largest) {
  std::vector<Extrapolated> all = extrapolated_from(results.runs, results.meetings, largest);
  std::map<std::tuple<ScaleRun::Kind, int, std::int64_t>, std::vector<ScaleRun>> groups;
  for (const ScaleRun& run : results.runs) groups[{run.kind, run.ranks, run.rows}].push_back(run);
  std::vector<std::vector<double>> weak(all.size()), strong(all.size());
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    const std::vector<Extrapolated> again = extrapolated_from(drawn_anew(groups, random), results.meetings, largest);
    for (std::size_t n = 0; n < all.size(); ++n) weak[n].push_back(again[n].weak_efficiency), strong[n].push_back(again[n].strong_efficiency);
  }
  for (std::size_t n = 0; n < all.size(); ++n) all[n].weak_interval = middle_95(weak[n]), all[n].strong_interval = middle_95(strong[n]);
  return all;
}

}  // namespace kvmesh
