// Dealing out a host's GPUs.
#include "comm/gpus.h"

#include "runtime/check.h"

#include <algorithm>
#include <map>

namespace kvmesh {

std::vector<GpuChoice> choose_gpus(std::span<const std::vector<std::string>> visible, bool share) {
  std::map<std::string, int> users;  // how many ranks have it
  for (const std::vector<std::string>& gpus : visible) {
    for (const std::string& gpu : gpus) users[gpu] = 0;
  }
  const auto fewer = [&](const std::string& a, const std::string& b) { return users[a] < users[b]; };
  std::vector<GpuChoice> choices;
  for (std::size_t r = 0; r < visible.size(); ++r) {
    const std::vector<std::string>& gpus = visible[r];
    check(!gpus.empty(), "--device cuda: no GPU answers to rank {} of this host's {}", r, visible.size());
    const auto gpu = std::min_element(gpus.begin(), gpus.end(), fewer);
    check(share || users[*gpu] == 0, "{} ranks on this host, but {} GPU{} ({} seen by rank {}): start as many ranks as GPUs, or give --share-gpus", visible.size(),
          users.size(), users.size() == 1 ? "" : "s", gpus.size(), r);
    ++users[*gpu];
    choices.push_back({static_cast<int>(gpu - gpus.begin()), false});
  }
  for (std::size_t r = 0; r < visible.size(); ++r) choices[r].shared = users[visible[r][static_cast<std::size_t>(choices[r].index)]] > 1;
  return choices;
}

}  // namespace kvmesh
