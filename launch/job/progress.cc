// Bar or lines.
#include "launch/job/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

namespace kvmesh {

Progress::Progress(bool draws) : draws_(draws), terminal_(isatty(STDERR_FILENO) != 0), begun_(std::chrono::steady_clock::now()), last_(begun_) {}

Progress::~Progress() {
  if (drawn_ && terminal_) std::fputs("\r\033[K", stderr);  // the summary takes the bar's place
}

void Progress::show(std::int64_t rows, std::int64_t total, std::int64_t new_tokens) {
  if (!draws_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < (terminal_ ? std::chrono::milliseconds(200) : std::chrono::milliseconds(10000))) return;
  last_ = now;
  drawn_ = true;
  const double seconds = std::chrono::duration<double>(now - begun_).count();
  const std::string figures = fmt::format("{}{} rows, {:.0f} tokens/s", rows, total < 0 ? "" : fmt::format(" of {}", total), static_cast<double>(new_tokens) / seconds);
  if (!terminal_) {
    fmt::print(stderr, "kvmesh: {}\n", figures);
    return;
  }
  constexpr std::int64_t width = 30;
  const std::int64_t filled = total > 0 ? std::min(width, rows * width / total) : 0;
  fmt::print(stderr, "\r\033[K[{}{}] {}", std::string(static_cast<std::size_t>(filled), '='), std::string(static_cast<std::size_t>(width - filled), ' '), figures);
  std::fflush(stderr);
}

}  // namespace kvmesh
