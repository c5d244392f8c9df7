// Errors with context: what kind of fault, one clear sentence. main prints it once and turns the kind into an exit code.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace kvmesh {

/// What went wrong, as far as the exit code is concerned (contract, section 4).
enum class Fault {
  usage = 1,  ///< bad option, checkpoint or input, before anything was generated
  rank = 70,  ///< a rank failed, stalled or disagreed
  io = 74,    ///< reading or writing failed while running
};

class Error : public std::runtime_error {
 public:
  Error(Fault fault, const std::string& message) : std::runtime_error(message), fault_(fault) {}
  Fault fault() const { return fault_; }

 private:
  Fault fault_;
};

/// Throws an Error of kind `fault`; the message names the file, line, tensor or option that is at fault.
template <typename... Args>
[[noreturn]] void fail(Fault fault, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(fault, fmt::format(format, std::forward<Args>(args)...));
}

/// Throws a usage error unless `ok`.
template <typename... Args>
void check(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) fail(Fault::usage, format, std::forward<Args>(args)...);
}

}  // namespace kvmesh
