// Keys and values of the rows in flight: a ring of `size` slots a place. All rows share one end cursor (right alignment): a row is
// [start, end) of absolute positions, slot = position mod size, and nothing outside that range is ever read.
#pragma once

#include "model/config.h"
#include "runtime/device.h"

#include <vector>

namespace kvmesh {

class KvCache {
 public:
  /// Room for `places` rows of `size` tokens in every layer; memory that no row has used yet is not touched.
  KvCache(Device& device, const ModelConfig& config, DType dtype, std::int64_t places, std::int64_t size) : places_(places), size_(size) {
    const Shape shape = {places, config.kv_heads, size, config.head_dim()};
    for (std::int64_t i = 0; i < config.num_layers; ++i) layers_.push_back({device.empty(dtype, shape), device.empty(dtype, shape)});
  }

  std::int64_t places() const { return places_; }
  std::int64_t size() const { return size_; }
  std::uint64_t serial() const { return serial_; }
  const LayerCache& layer(std::int64_t i) const { return layers_[static_cast<std::size_t>(i)]; }

  /// The first `count` positions of the row that began at `from` in place `source`, again in place `target` from `to` on.
  void copy_row(Device& device, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to, std::int64_t count) const {
    for (const LayerCache& layer : layers_) device.copy_rows(layer, source, from, target, to, count);
  }

 private:
  std::int64_t places_, size_;
  std::uint64_t serial_ = serial_number();
  std::vector<LayerCache> layers_;  // [places, kv_heads, size, head_dim] each
};

}  // namespace kvmesh
