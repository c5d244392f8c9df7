// The only file that is compiled anew when the build's hash changes.
#include "launch/version.h"

namespace kvmesh {

std::string_view version_text() { return KVMESH_VERSION; }

std::string_view build_text() { return KVMESH_BUILD; }

}  // namespace kvmesh
