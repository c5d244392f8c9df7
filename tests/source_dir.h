// Where the repository's files are: the bundle takes tests and fixtures elsewhere and says so in KVMESH_SOURCE.
#pragma once

#include <cstdlib>
#include <filesystem>

namespace kvmesh {

inline std::filesystem::path source_dir() {
  const char* moved = std::getenv("KVMESH_SOURCE");
  return moved != nullptr ? moved : KVMESH_SOURCE_DIR;
}

}  // namespace kvmesh
