#include "launch/job/plots.h"

#include "model/safetensors.h"
#include "runtime/check.h"

#include <nlohmann/json.hpp>

#include <cstdlib>
#include <fstream>
#include <map>
#include <string>

namespace kvmesh {

bool draw_plots(const std::filesystem::path& folder) {
  std::string quoted = "'";
  for (const char c : folder.string()) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  quoted += "'";
  return std::system(("cd " + quoted + " && command -v gnuplot >/dev/null 2>&1 && gnuplot plots.gp >/dev/null 2>plots.log && rm -f plots.log").c_str()) == 0;
}

bool plot_losses(const std::filesystem::path& metrics, const std::filesystem::path& folder) {
  std::map<std::int64_t, std::string> lines;  // of a step that was taken twice, the later one
  std::ifstream in(metrics);
  check(in.good(), "{}: cannot be read", metrics.string());
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const auto number = [&](const char* key) { return json.contains(key) && json[key].is_number() ? fmt::format("{}", json[key].get<double>()) : "NaN"; };
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer()) continue;  // torn by a crash, or another program's
    lines[json["step"]] = fmt::format("{} {} {}\n", json["step"].get<std::int64_t>(), number("loss"), number("validation_loss"));
  }
  std::string data = "# step, loss, validation loss\n";
  for (const auto& [step, line] : lines) data += line;
  std::filesystem::create_directories(folder);
  write_file(folder / "losses.dat", data);
  write_file(folder / "plots.gp", R"gp(# gnuplot plots.gp
set terminal svg size 720,420 font "sans,12" background rgb "white"
set output "loss.svg"
set grid ytics lc rgb "#dddddd"
set datafile missing "NaN"
set xlabel "step"
set ylabel "loss, nats a token"
plot "losses.dat" using 1:2 with lines lc rgb "#1f77b4" title "training", "losses.dat" using 1:3 with linespoints lc rgb "#ff7f0e" pt 7 lw 2 title "validation"
)gp");
  return draw_plots(folder);
}

}  // namespace kvmesh
