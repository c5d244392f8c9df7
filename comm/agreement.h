// Comparing what should be equal on all ranks.
#pragma once

#include "comm/communicator.h"

#include <cstdint>
#include <string>

namespace kvmesh {

/// Collective. Throws Error(Fault::rank) on every rank unless all gave the same `hash`; it names `what` and the ranks that differ from the
/// majority (from rank 0, where there is none).
void check_agreement(Communicator& ranks, std::uint64_t hash, const std::string& what);

}  // namespace kvmesh
