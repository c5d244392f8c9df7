#include "model/train/train_state.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace kvmesh {
namespace {

constexpr std::int64_t buffer = 1 << 22;  // elements of all ranks that are on their way at once

std::int64_t chunk_of(const Owners& owners) { return std::max<std::int64_t>(1 << 14, buffer / std::ssize(owners)); }

/// Of a rank's own elements, those in the chunk that begins at `done`.
Range part_of(std::span<const Range> owner, std::int64_t done, std::int64_t chunk) {
  const std::int64_t size = size_of(owner);
  return {std::min(done, size), std::min(done + chunk, size)};
}

/// Copies a chunk of all ranks' elements, one rank's after another's in `buffer`, from there to where they are in `whole`, or back.
void copy_chunk(const Owners& owners, std::int64_t done, const Tensor& whole, const Tensor& buffered, bool to_buffer) {
  float* at = buffered.data<float>();
  for (const std::vector<Range>& owner : owners) {
    const Range part = part_of(owner, done, chunk_of(owners));
    std::int64_t before = 0;
    for (const Range& stretch : owner) {
      const std::int64_t begin = std::max(part.begin, before), end = std::min(part.end, before + stretch.size());
      if (begin < end) {
        float* const there = whole.data<float>() + stretch.begin + begin - before;
        std::memcpy(to_buffer ? at : there, to_buffer ? there : at, static_cast<std::size_t>(end - begin) * sizeof(float));
        at += end - begin;
      }
      before += stretch.size();
    }
  }
}

void move_state(Communicator& ranks, Device& device, const Owners& owners, const Tensor& own, const Tensor& whole, bool spread) {
  const bool first = ranks.rank() == 0;
  const std::int64_t chunk = chunk_of(owners);
  std::int64_t longest = 0;
  for (const std::vector<Range>& owner : owners) longest = std::max(longest, size_of(owner));
  const Tensor memory = host_tensor(DType::f32, {first ? state_buffer(owners) / static_cast<std::int64_t>(sizeof(float)) : 0});
  const Tensor chunk_of_own = host_tensor(DType::f32, {std::min(chunk, own.numel())});
  for (std::int64_t done = 0; done < longest; done += chunk) {
    std::vector<std::int64_t> with_all(owners.size()), with_first(owners.size());  // elements that this rank exchanges with others: as rank 0, and as an owner
    for (std::size_t r = 0; first && r < owners.size(); ++r) with_all[r] = part_of(owners[r], done, chunk).size();
    const Range part = part_of(owners[static_cast<std::size_t>(ranks.rank())], done, chunk);
    with_first[0] = part.size();
    const Tensor here = own.slice(part.begin, part.end), mine = chunk_of_own.slice(0, part.size()), all = memory.slice(0, std::accumulate(with_all.begin(), with_all.end(), std::int64_t{0}));
    if (first && spread) copy_chunk(owners, done, whole, all, true);
    if (!spread) device.copy(here, mine);
    if (spread) ranks.exchange(all, with_all, mine, with_first);
    else ranks.exchange(mine, with_first, all, with_all);
    if (spread) device.copy(mine, here);
    if (first && !spread) copy_chunk(owners, done, whole, all, false);
  }
}

}  // namespace

std::int64_t state_buffer(const Owners& owners) {
  const std::int64_t chunk = chunk_of(owners);
  std::int64_t elements = 0;
  for (const std::vector<Range>& owner : owners) elements += std::min(chunk, size_of(owner));
  return elements * static_cast<std::int64_t>(sizeof(float));
}

void collect_state(Communicator& ranks, Device& device, const Owners& owners, const Tensor& own, const Tensor& whole) { move_state(ranks, device, owners, own, whole, false); }
void spread_state(Communicator& ranks, Device& device, const Owners& owners, const Tensor& whole, const Tensor& own) { move_state(ranks, device, owners, own, whole, true); }

}  // namespace kvmesh
