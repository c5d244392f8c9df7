// The rules' names, their translation, and the split of the batch.
#include "comm/sharding.h"

#include "runtime/check.h"

#include <algorithm>
#include <set>
#include <utility>

namespace kvmesh {
namespace {

std::string join(std::span<const std::string> names) { return fmt::format("{}", fmt::join(names, ", ")); }

/// "none", "x" or "(x, y)"
std::string describe(const ShardingRules::Axes& axes) {
  if (axes.empty()) return "none";
  return axes.size() == 1 ? axes[0] : "(" + join(axes) + ")";
}

}  // namespace

ShardingRules::ShardingRules() {
  for (const char* name : {"batch", "sequence", "act_embed", "act_ffw", "act_heads", "head_dim",       // activations
                           "vocab_in", "vocab_out",                                                    // embedding and logits
                           "qkv_embed", "q_heads", "kv_heads", "o_heads", "o_embed",                   // attention's weights
                           "mlp_up_embed", "mlp_up_ffw", "mlp_down_ffw", "mlp_down_embed",             // the MLP's
                           "norm_in", "norm_out", "linear_in", "linear_out"}) {
    axes_[name];
  }
  axes_["batch"] = {"x"};
}

void ShardingRules::set(std::string_view logical, Axes axes) {
  this->axes(logical);
  axes_.find(logical)->second = std::move(axes);
}

const ShardingRules::Axes& ShardingRules::axes(std::string_view logical) const {
  const auto found = axes_.find(logical);
  check(found != axes_.end(), "there is no sharding rule for a dimension named \"{}\"", logical);
  return found->second;
}

std::vector<ShardingRules::Axes> ShardingRules::translate(std::span<const std::string_view> logical) const {
  std::vector<Axes> physical;
  std::set<std::string_view> used;
  bool collide = false;
  for (const std::string_view name : logical) {
    physical.push_back(name.empty() ? Axes{} : axes(name));
    for (const std::string& axis : name.empty() ? physical.back() : axes(name)) collide |= !used.insert(axis).second;
  }
  if (collide) {
    std::string from, to;
    for (std::size_t i = 0; i < logical.size(); ++i) {
      from += fmt::format("{}{}", i ? ", " : "", logical[i].empty() ? "none" : logical[i]);
      to += (i ? ", " : "") + describe(physical[i]);
    }
    fail(Fault::usage, "Colliding physical axes from translating logical spec ({}) -> ({})", from, to);
  }
  return physical;
}

int ShardingRules::shards(std::string_view logical, const Mesh& mesh) const {
  int product = 1;
  for (const std::string& axis : axes(logical)) product *= mesh.size(axis);
  return product;
}

int ShardingRules::shard(std::string_view logical, const Mesh& mesh, int rank) const {
  int index = 0;
  for (const std::string& axis : axes(logical)) index = index * mesh.size(axis) + mesh.coordinate(axis, rank);
  return index;
}

void ShardingRules::check_runnable(const Mesh& mesh) const {
  for (const auto& [logical, axes] : axes_) {
    for (const std::string& axis : axes) {
      check(mesh.has(axis), "--mesh {}: the sharding rules split {} over axis {}, which it does not have", to_string(mesh), logical, axis);
      check(logical == "batch" || mesh.size(axis) == 1, "--mesh {}: the sharding rules split {} over axis {}, but only the batch can be split",
            to_string(mesh), logical, axis);
    }
  }
  const Axes& batch = axes("batch");
  for (const Mesh::Axis& axis : mesh.axes()) {
    check(axis.size == 1 || std::find(batch.begin(), batch.end(), axis.name) != batch.end(),
          "--mesh {}: axis {} cannot be larger than 1, only the batch is split, over {}", to_string(mesh), axis.name, describe(batch));
  }
}

std::int64_t size_of(std::span<const Range> ranges) {
  std::int64_t size = 0;
  for (const Range& range : ranges) size += range.size();
  return size;
}

Range split(std::int64_t n, std::int64_t parts, std::int64_t i) {
  check(n >= 0 && 0 <= i && i < parts, "there is no part {} of {} items in {} parts", i, n, parts);
  const auto before = [&](std::int64_t k) { return k * (n / parts) + std::min(k, n % parts); };
  return {before(i), before(i + 1)};
}

}  // namespace kvmesh
