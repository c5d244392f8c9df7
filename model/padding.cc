// Left padding and its reading.
#include "model/padding.h"

#include <algorithm>
#include <bit>

namespace kvmesh {

std::int64_t padded_length(std::int64_t longest, Pad pad) {
  return pad == Pad::longest ? longest : static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(longest)));
}

PaddedBatch pad_tokens(std::span<const std::vector<std::int32_t>> rows, std::int32_t pad_id, Pad pad) {
  std::size_t longest = 0;
  for (const auto& row : rows) {
    check(!row.empty(), "pad_tokens: a row has no tokens");
    longest = std::max(longest, row.size());
  }
  const auto batch = static_cast<std::int64_t>(rows.size());
  const std::int64_t length = padded_length(static_cast<std::int64_t>(longest), pad);
  PaddedBatch out{host_tensor(DType::i32, {batch, length}), host_tensor(DType::i32, {batch, length})};
  std::int32_t* ids = out.ids.data<std::int32_t>();
  std::int32_t* segments = out.segment_ids.data<std::int32_t>();
  for (const auto& row : rows) {
    const std::int64_t left = length - static_cast<std::int64_t>(row.size());
    std::fill_n(ids, left, pad_id);
    std::copy(row.begin(), row.end(), ids + left);
    std::transform(ids, ids + length, segments, [pad_id](std::int32_t id) { return id != pad_id; });
    ids += length;
    segments += length;
  }
  return out;
}

std::vector<std::int64_t> count_left_padding(const Tensor& segment_ids) {
  std::vector<std::int64_t> starts;
  for (std::int64_t b = 0; b < segment_ids.size(0); ++b) {
    const auto row = segment_ids.slice(b, b + 1).span<std::int32_t>();
    starts.push_back(std::find_if(row.begin(), row.end(), [](std::int32_t s) { return s != 0; }) - row.begin());
  }
  return starts;
}

}  // namespace kvmesh
