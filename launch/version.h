// The program's version.
#pragma once

#include <string_view>

namespace kvmesh {

constexpr std::string_view version_text() { return KVMESH_VERSION; }

}  // namespace kvmesh
