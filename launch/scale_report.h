// What kvmesh scale found, as Markdown, JSON and plots.
#pragma once

#include "launch/scale_fit.h"

#include <filesystem>
#include <string>

namespace kvmesh {

/// Writes report.json, report.md, data files with gnuplot's script, and, where gnuplot can be started, the plots; an Error names what cannot be written. Returns a
/// sentence about plots that could not be drawn, or nothing.
std::string write_scale_report(const ScaleResults& results, const std::filesystem::path& folder);

}  // namespace kvmesh
