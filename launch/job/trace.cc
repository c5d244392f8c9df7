// Events in JSON, written in large blocks.
#include "launch/job/trace.h"

#include "launch/job/rows.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <chrono>
#include <utility>

namespace kvmesh {
namespace {

using namespace std::chrono;

constexpr std::size_t block_bytes = std::size_t{1} << 16;
constexpr double shortest_us = 1;  // the loop's shortest stretches would only be noise

std::filesystem::path with_rank(std::filesystem::path file, int rank) {
  const std::filesystem::path extension = file.extension();
  return file.replace_extension(fmt::format("{}{}", rank, extension.string()));
}

const char* name_of(double TimeSplit::* part) {
  for (const auto& [member, name] : {std::pair(&TimeSplit::prefill, "prefill"), std::pair(&TimeSplit::decode, "decode"), std::pair(&TimeSplit::sampling, "sampling"),
                                     std::pair(&TimeSplit::collectives, "collectives"), std::pair(&TimeSplit::rows, "io")}) {
    if (member == part) return name;
  }
  return "loop";
}

double microseconds(auto time) { return duration<double, std::micro>(time.time_since_epoch()).count(); }

}  // namespace

Trace::Trace(const std::filesystem::path& file, int rank, const std::string& host)
    : rank_(rank), offset_us_(microseconds(system_clock::now()) - microseconds(steady_clock::now())) {
  try {
    file_ = std::make_unique<File>(with_rank(file, rank), O_WRONLY | O_CREAT | O_TRUNC);
  } catch (const Error& e) {
    fail(Fault::usage, "--trace: {}", e.what());
  }
  const Json name = {{"name", "process_name"}, {"ph", "M"}, {"pid", rank}, {"args", {{"name", fmt::format("rank {} on {}", rank, host)}}}};
  text_ = "[\n" + name.dump();  // the format allows a list without an end
}

Trace::~Trace() {
  try {
    text_ += "\n]\n";
    flush();
  } catch (const Error&) {  // the disk is full: the job has its output, and the trace what fitted
  }
}

TimeSink Trace::sink() {
  return [this](double TimeSplit::* part, steady_clock::time_point from, steady_clock::time_point to) {
    const double us = microseconds(to) - microseconds(from);
    if (us < shortest_us) return;
    text_ += fmt::format(",\n{{\"name\":\"{}\",\"ph\":\"X\",\"pid\":{},\"tid\":0,\"ts\":{:.1f},\"dur\":{:.1f}}}", name_of(part), rank_, microseconds(from) + offset_us_, us);
    if (text_.size() >= block_bytes) flush();
  };
}

void Trace::flush() { file_->write(std::exchange(text_, {})); }

}  // namespace kvmesh
