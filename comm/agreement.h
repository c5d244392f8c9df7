// Comparing what should be equal on all ranks.
#pragma once

#include "comm/communicator.h"

#include <cstdint>
#include <span>
#include <string_view>

namespace kvmesh {

/// hashes [ranks]. Throws Error(Fault::rank) unless all are the same; it names `what` and the ranks that differ from the majority (from the
/// lowest rank's, where there is none).
void check_equal(std::span<const std::uint64_t> hashes, std::string_view what);

/// Collective: check_equal of every rank's `hash`, on every rank.
void check_agreement(Communicator& ranks, std::uint64_t hash, std::string_view what);

}  // namespace kvmesh
