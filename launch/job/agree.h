// Doing a thing on one rank so that all ranks learn how it went.
#pragma once

#include "comm/communicator.h"

#include <exception>
#include <functional>
#include <string>
#include <vector>

namespace kvmesh {

/// What was thrown, as the Error that a user is told.
Error error_of(const std::exception& thrown);

/// Runs `body` on rank 0, on a thread of its own where there are other ranks (it must not communicate); they wait for it as long as that
/// rank gives signs of life. When it throws an Error, every rank throws that Error. Collective.
void on_first_rank(Communicator& ranks, const std::function<void()>& body);

/// Rank 0's value on every rank. Collective.
std::int64_t from_first_rank(Communicator& ranks, std::int64_t value);

/// The largest of the ranks' values. Collective.
std::int64_t largest(Communicator& ranks, std::int64_t value);

/// Rank 0's bytes on every rank. Collective.
void broadcast_bytes(Communicator& ranks, std::string& bytes);

/// Every rank's bytes, by rank, on every rank. Collective.
std::vector<std::string> gather_bytes(Communicator& ranks, const std::string& bytes);

}  // namespace kvmesh
