// How a packed weight lies: panels of `panel` columns, each [steps][panel] words of 32 bits, a word being one float32 or the bfloat16 of k and k + 1.
// A panel of integers is its columns' float32 scales, then [k][panel] bytes, in steps of two k as columns.h places them. Columns beyond n and what fills k up to whole steps are zeros.
#pragma once

#include "runtime/cpu/kernels/table.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t steps_of(bool bf16, std::int64_t k) { return !bf16 ? k : by_tiles ? round_up((k + 1) / 2, 16) : (k + 1) / 2; }

constexpr std::int64_t scale_bytes = panel * 4;

constexpr std::int64_t bytes_per_step(WeightForm form) { return !form.int8 ? panel * 4 : form.bf16 ? 2 * panel : panel; }

constexpr std::int64_t bytes_of_panel(WeightForm form, std::int64_t k) { return steps_of(form.bf16, k) * bytes_per_step(form) + (form.int8 ? scale_bytes : 0); }

/// Steps of integers to words, which are exact.
template <typename Kind>
KVMESH_INLINE void widen_steps(const std::int8_t* from, std::int64_t steps, typename Kind::Right* to) {
  for (std::int64_t s = 0; s < steps; ++s, from += Kind::k_per_step * panel, to += panel) {
    typename Kind::Vector words[max_vectors];
    read_columns(from, words);
#pragma GCC unroll 4
    for (int v = 0; v < max_vectors; ++v) store(to + v * lanes, words[v]);
  }
}

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
