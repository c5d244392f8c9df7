// Left padding, as the seed program's pad_tokens has it. kvmesh never computes with pads: they only say where a row starts.
#pragma once

#include "runtime/tensor.h"

#include <cstdint>
#include <span>
#include <vector>

namespace kvmesh {

enum class Pad { power_of_two, longest };

/// The common length that prompts of at most `longest` tokens are padded to.
std::int64_t padded_length(std::int64_t longest, Pad pad);

struct PaddedBatch {
  Tensor ids;          // i32 [B, P], pads on the left
  Tensor segment_ids;  // i32 [B, P], 0 = pad, 1 = token
};

/// Left-pads every row to the padded length of the longest. No row may be empty.
PaddedBatch pad_tokens(std::span<const std::vector<std::int32_t>> rows, std::int32_t pad_id, Pad pad);

/// Leading zeros of each row of segment_ids [B, P]: the row's start column.
std::vector<std::int64_t> count_left_padding(const Tensor& segment_ids);

}  // namespace kvmesh
