// Plots, drawn by gnuplot where it is installed.
#pragma once

#include <filesystem>

namespace kvmesh {

/// Runs `gnuplot plots.gp` in the folder; whether that went well. What gnuplot complained of is then in plots.log there.
bool draw_plots(const std::filesystem::path& folder);

/// From the metrics of `kvmesh train` (a JSON line a step): the folder with losses.dat, plots.gp and, where gnuplot can be started, loss.svg. An Error names
/// what cannot be read or written; whether it is drawn.
bool plot_losses(const std::filesystem::path& metrics, const std::filesystem::path& folder);

}  // namespace kvmesh
