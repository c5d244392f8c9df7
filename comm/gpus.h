// Which rank uses which GPU of its host.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace kvmesh {

struct GpuChoice {
  int index = 0;        ///< among the GPUs that the rank sees
  bool shared = false;  ///< other ranks of the host use it as well
};

/// visible[r]: names, unique on the host, of the GPUs that its rank r sees, in the order of their indices. Each rank gets the first that no
/// lower rank has: its own number where all see the same, the only one where a scheduler shows each rank its own. An Error where a rank sees
/// none, or, unless they are to `share`, none is left for it.
std::vector<GpuChoice> choose_gpus(std::span<const std::vector<std::string>> visible, bool share);

}  // namespace kvmesh
