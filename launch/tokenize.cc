// kvmesh tokenize: text lines to lists of ids, or back.
#include "launch/commands.h"
#include "launch/options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include <iostream>

namespace kvmesh {
namespace {

std::vector<std::int32_t> parse_ids(const std::string& line, std::int64_t number) {
  const nlohmann::json ids = nlohmann::json::parse(line, nullptr, false);
  check(ids.is_array() && line.find('\0') == std::string::npos, "standard input, line {}: not a JSON list of ids", number);
  std::vector<std::int32_t> out;
  for (const auto& id : ids) {
    check(id.is_number_integer() && id >= 0 && id <= std::numeric_limits<std::int32_t>::max(), "standard input, line {}: {} is no id", number, id.dump());
    out.push_back(id);
  }
  return out;
}

}  // namespace

int tokenize_command(std::span<const std::string> args) {
  const std::optional<TokenizeOptions> o = parse_tokenize_options(args);
  if (!o) return 0;
  const Tokenizer tokenizer(o->tokenizer);
  std::ios::sync_with_stdio(false);
  std::string line;
  for (std::int64_t number = 1; std::getline(std::cin, line); ++number) {
    if (o->decode) std::cout << tokenizer.decode(parse_ids(line, number)) << '\n';
    else std::cout << fmt::format("[{}]\n", fmt::join(tokenizer.encode(line), ", "));
  }
  std::cout.flush();
  if (!std::cout) fail(Fault::io, "standard output: writing failed");
  return 0;
}

}  // namespace kvmesh
