// Bar or lines.
#include "launch/job/progress.h"

#include "runtime/say.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

namespace kvmesh {
std::string duration_text(double seconds) {
  const auto s = static_cast<std::int64_t>(std::min(seconds, 1e12) + 0.5);
  if (s < 60) return fmt::format("{} s", s);
  if (s < 3600) return fmt::format("{} min {:02} s", s / 60, s % 60);
  return fmt::format("{} h {:02} min", s / 3600, s % 3600 / 60);
}

Progress::Progress(bool draws) : draws_(draws), terminal_(isatty(STDERR_FILENO) != 0), begun_(std::chrono::steady_clock::now()), last_(begun_) {}

Progress::~Progress() {
  if (drawn_ && terminal_) std::fputs("\r\033[K", stderr);  // the summary takes the bar's place
}

void Progress::show(const Figures& f) {
  if (!draws_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000))) return;
  last_ = now;
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - begun_).count();
  std::string figures = fmt::format("{}{} rows, {:.0f} tokens/s", f.rows, f.total < 0 ? "" : fmt::format(" of {}{}", f.total_is_known ? "" : "about ", f.total),
                                    static_cast<double>(f.tokens) / seconds);
  if (f.in_flight > 0) figures += fmt::format(", {} in flight", f.in_flight);
  if (f.total > f.rows && f.rows > 0) figures += fmt::format(", {} left", duration_text(seconds * static_cast<double>(f.total - f.rows) / static_cast<double>(f.rows)));
  if (!terminal_) {
    say("kvmesh: {}\n", figures);
    return;
  }
  constexpr std::int64_t width = 30;
  const std::int64_t filled = f.total > 0 ? std::min(width, f.rows * width / f.total) : 0;
  say("\r\033[K[{}{}] {}", std::string(static_cast<std::size_t>(filled), '='), std::string(static_cast<std::size_t>(width - filled), ' '), figures);
  std::fflush(stderr);
}

}  // namespace kvmesh
