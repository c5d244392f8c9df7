#include "launch/job/train_report.h"

#include "launch/job/progress.h"
#include "runtime/say.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace kvmesh {

TrainReport::TrainReport(bool speaks, std::int64_t steps, std::int64_t done, double peak, const File* metrics)
    : speaks_(speaks), terminal_(isatty(STDERR_FILENO) != 0), steps_(steps), done_(done), peak_(peak), metrics_(metrics), begun_(Clock::now()) {}

void TrainReport::begin(const std::string& text) {
  begun_ = Clock::now();
  if (speaks_) say("kvmesh: {}\n", text);
}

void TrainReport::step(const Figures& f) {
  if (!speaks_) return;
  const auto now = Clock::now();
  const double all = std::chrono::duration<double>(now - begun_).count(), tokens_per_s = static_cast<double>(f.step.tokens) / f.seconds,
               share = peak_ > 0 ? tokens_per_s * f.flops_per_token / peak_ : 0;
  const double left = all / static_cast<double>(f.number - done_) * static_cast<double>(steps_ - f.number);
  if (metrics_) {
    const auto since = [&](double StepTimes::* part) { return f.times.*part - times_.*part; };
    nlohmann::ordered_json line = {{"step", f.number},          {"loss", f.step.loss},     {"lr", f.step.lr},         {"grad_norm", f.step.norm},
                                   {"tokens", f.step.tokens},   {"seconds", f.seconds},      {"tokens_per_s", tokens_per_s}, {"peak_fraction", peak_ > 0 ? nlohmann::ordered_json(share) : nlohmann::ordered_json()},
                                   {"seconds_left", left},
                                   {"split", {{"gradients", since(&StepTimes::gradients)}, {"exchange", since(&StepTimes::exchange)}, {"update", since(&StepTimes::update)},
                                              {"gather", since(&StepTimes::gather)}, {"packing", since(&StepTimes::packing)}}}};
    if (f.validation) line["validation_loss"] = *f.validation;
    for (const TrainSample& sample : f.samples) line["samples"].push_back({{"prompt", sample.prompt}, {"completion", sample.completion}});
    metrics_->write(line.dump() + "\n");
    times_ = f.times;
  }
  const bool tell = f.last || f.validation.has_value() || !f.samples.empty();
  if (!tell && now - shown_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000))) return;
  shown_ = now;
  const std::string text = fmt::format("step {} of {}: loss {:.4f}{}, lr {:.2g}, {:.0f} tokens/s{}, {} left", f.number, steps_, f.step.loss,
                                       f.validation ? fmt::format(", validation {:.4f}", *f.validation) : "", f.step.lr, tokens_per_s,
                                       peak_ > 0 ? fmt::format(", {:.0f} % of peak", 100 * share) : "", duration_text(left));
  say("{}kvmesh: {}{}", terminal_ ? "\r\033[K" : "", text, terminal_ && !tell ? "" : "\n");
  for (const TrainSample& sample : f.samples) say("kvmesh: after step {}: {}\n", f.number, Json(sample.prompt + sample.completion).dump());
  std::fflush(stderr);
}

void TrainReport::end(const std::string& text) {
  if (speaks_) say("{}kvmesh: {}\n", terminal_ ? "\r\033[K" : "", text);
}

}  // namespace kvmesh
