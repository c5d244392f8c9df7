// kvmesh import and kvmesh export: checkpoints of other programs to checkpoint folders, and back. Python scripts in convert/ do it, for what they read has
// its libraries there; this finds them and becomes their Python.
#include "launch/commands.h"

#include "runtime/check.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <vector>

namespace kvmesh {
namespace {

/// The scripts lie beside the program in a build folder, in ../share/kvmesh where it is installed or bundled.
std::filesystem::path find_script() {
  std::error_code none;
  const std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", none).parent_path();
  for (const char* place : {"convert", "../share/kvmesh/convert"}) {
    const std::filesystem::path script = folder / place / "convert.py";
    if (std::filesystem::is_regular_file(script, none)) return script;
  }
  fail(Fault::usage, "the scripts of import and export are not where they belong: {}", (folder / "../share/kvmesh/convert").string());
}

/// What --python says; the other words are the scripts' to read.
std::string python_of(std::span<const std::string> words) {
  constexpr std::string_view option = "--python";
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i].starts_with("--python=")) return words[i].substr(option.size() + 1);
    if (words[i] == option && i + 1 < words.size()) return words[i + 1];
  }
  return "python3";
}

/// Threads of the Python that comes have stacks as large as this limit, which count in the memory that convert/bounded.py allows.
void limit_stacks() {
  constexpr rlim_t most = rlim_t{8} << 20;
  rlimit limit = {};
  if (::getrlimit(RLIMIT_STACK, &limit) != 0 || limit.rlim_cur <= most) return;
  limit.rlim_cur = most;
  ::setrlimit(RLIMIT_STACK, &limit);
}

}  // namespace

int convert_command(std::span<const std::string> words) {
  const std::string python = python_of(words);
  std::vector<std::string> command = {python, "-B", find_script().string()};
  command.insert(command.end(), words.begin(), words.end());
  std::vector<char*> arguments;
  for (std::string& word : command) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  limit_stacks();
  execvp(python.c_str(), arguments.data());
  fail(Fault::usage, "{}: {}; import and export need Python 3 (--python PATH)", python, std::strerror(errno));
}

}  // namespace kvmesh
