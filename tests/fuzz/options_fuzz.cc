// An INI file for --config, --shape, and the input's lines as a command line.
#include "launch/options.h"

#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

#include <algorithm>
#include <sstream>

namespace {

using namespace kvmesh;

void use(const std::vector<std::string>& args) {
  fuzz::accepted([&] {
    const auto o = parse_generate_options(args, false);
    if (o) fuzz::require(o->row.max_new_tokens >= 1 && o->row.top_p > 0 && o->row.top_p <= 1 && o->mesh.batch_size >= 1 && o->mesh.comm_timeout > 0);
  });
  fuzz::accepted([&] { parse_score_options(args, false); });
  fuzz::accepted([&] { parse_bench_options(args, false); });
  fuzz::accepted([&] {
    const auto o = parse_verify_options(args, false);
    if (o) fuzz::require(o->fraction > 0 && o->fraction <= 1 && !o->mesh.output.empty());
  });
  if (std::none_of(args.begin(), args.end(), [](const std::string& arg) { return arg.starts_with("-h") || arg.starts_with("--h"); })) {
    fuzz::accepted([&] {
      const auto o = parse_progress_options(args);
      if (o) fuzz::require(!o->file.empty());
    });
  }
}

}  // namespace

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const test::Scratch scratch;
  const std::string text(fuzz::text_of(data, size));
  use({"--config", scratch.write("input.ini", text).string()});
  use({"--shape", text});

  std::vector<std::string> args;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) args.push_back(line);
  // A mutated --config could name any file of this machine, even one that never ends.
  std::erase_if(args, [](const std::string& arg) { return arg.starts_with("--c"); });
  use(args);
  return 0;
}
