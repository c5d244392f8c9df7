// Hashes of all ranks against the majority's.
#include "comm/agreement.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace kvmesh {

void check_equal(std::span<const std::uint64_t> hashes, std::string_view what) {
  if (std::all_of(hashes.begin(), hashes.end(), [&](std::uint64_t h) { return h == hashes[0]; })) return;
  const auto count = [&](std::uint64_t h) { return std::count(hashes.begin(), hashes.end(), h); };
  const std::uint64_t common = *std::max_element(hashes.begin(), hashes.end(), [&](std::uint64_t a, std::uint64_t b) { return count(a) < count(b); });
  std::vector<std::size_t> different;
  for (std::size_t r = 0; r < hashes.size(); ++r) {
    if (hashes[r] != common) different.push_back(r);
  }
  fail(Fault::rank, "{} differ between ranks: rank {} against the others", what, fmt::join(different, ", "));
}

void check_agreement(Communicator& ranks, std::uint64_t hash, std::string_view what) {
  const Tensor mine = host_tensor(DType::u64, {1}), gathered = host_tensor(DType::u64, {ranks.size(), 1});
  mine.data<std::uint64_t>()[0] = hash;
  ranks.all_gather(mine, gathered);
  check_equal(gathered.span<std::uint64_t>(), what);
}

}  // namespace kvmesh
