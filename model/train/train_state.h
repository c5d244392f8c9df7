// The optimizer's state on its way between the ranks that own it and rank 0, which reads and writes it: a chunk at a time, so that no other rank ever holds more
// than its own.
#pragma once

#include "comm/communicator.h"
#include "model/train/optimizer.h"

namespace kvmesh {

/// Bytes that rank 0 needs for it, besides a chunk of its own as every rank.
std::int64_t state_buffer(const Owners& owners);

/// `own` is f32 [own elements] in the device's memory; `whole` f32 [layout.size] on rank 0, which it is put together on, and is not looked at elsewhere. Collective.
void collect_state(Communicator& ranks, Device& device, const Owners& owners, const Tensor& own, const Tensor& whole);
/// The other way.
void spread_state(Communicator& ranks, Device& device, const Owners& owners, const Tensor& whole, const Tensor& own);

}  // namespace kvmesh
