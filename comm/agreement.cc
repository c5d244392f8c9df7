// Hashes of all ranks against the majority's.
#include "comm/agreement.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace kvmesh {

void check_agreement(Communicator& ranks, std::uint64_t hash, const std::string& what) {
  const Tensor mine = host_tensor(DType::u64, {1}), gathered = host_tensor(DType::u64, {ranks.size(), 1});
  mine.data<std::uint64_t>()[0] = hash;
  ranks.all_gather(mine, gathered);
  const auto all = gathered.span<std::uint64_t>();
  std::uint64_t common = all[0];
  for (const std::uint64_t h : all) {
    if (std::count(all.begin(), all.end(), h) > std::count(all.begin(), all.end(), common)) common = h;
  }
  std::vector<std::ptrdiff_t> different;
  for (std::size_t r = 0; r < all.size(); ++r) {
    if (all[r] != common) different.push_back(static_cast<std::ptrdiff_t>(r));
  }
  if (!different.empty()) fail(Fault::rank, "{} differ between ranks: rank {} against the others", what, fmt::join(different, ", "));
}

}  // namespace kvmesh
