// Which dimensions of which tensors are split over which axes of the mesh, and the part of the batch that a rank owns.
#pragma once

#include "comm/mesh.h"

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

/// From the logical names of tensor dimensions ("batch", "q_heads", …) to axes of the mesh: none, one or several. At first
/// "batch" goes to "x" and nothing else is split. Names that are not known are an Error everywhere.
class ShardingRules {
 public:
  using Axes = std::vector<std::string>;

  ShardingRules();
  void set(std::string_view logical, Axes axes);
  const Axes& axes(std::string_view logical) const;

  /// One entry a dimension; "" is a dimension that is never split. An Error when two dimensions come to the same mesh axis.
  std::vector<Axes> translate(std::span<const std::string_view> logical) const;

  /// Into how many shards the dimension is split on this mesh, and which of them is the rank's (row-major over its axes).
  int shards(std::string_view logical, const Mesh& mesh) const;
  int shard(std::string_view logical, const Mesh& mesh, int rank) const;

  /// An Error unless kvmesh can run this: all axes named here exist, and only those of "batch" are larger than 1.
  void check_runnable(const Mesh& mesh) const;

 private:
  std::map<std::string, Axes, std::less<>> axes_;
};

struct Range {
  std::int64_t begin = 0, end = 0;
  std::int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};
/// Of all of them together.
std::int64_t size_of(std::span<const Range> ranges);

/// Part i of n items in `parts` contiguous parts that differ by one at most, the longer ones first; empty where parts > n.
Range split(std::int64_t n, std::int64_t parts, std::int64_t i);

}  // namespace kvmesh
