// What this program is.
#pragma once

#include <string_view>

namespace kvmesh {

std::string_view version_text();

/// 16 hex digits that change with the sources of what computes (runtime/, comm/, model/), the compiler and the kind of build.
std::string_view build_text();

}  // namespace kvmesh
