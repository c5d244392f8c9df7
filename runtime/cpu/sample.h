// Logits to tokens on the CPU (contract, sections 4 and 5).
#pragma once

#include "runtime/cpu/isa.h"
#include "runtime/cpu/thread_pool.h"
#include "runtime/device.h"

#include <span>

namespace kvmesh::cpu {

/// Device::sample: logits f32 [R, V] with V < 2²⁰, rows[r] for row r, R = rows.size(). NaN counts as -inf, +inf as the largest
/// float; a row with nothing above -inf gives token 0 and log-probabilities -inf. A temperature so small that the largest
/// logit overflows when divided by it draws greedily. The bits of a row depend on that row alone, not on `isa`.
void sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out, ThreadPool& pool, Isa isa = cpu::isa());

}  // namespace kvmesh::cpu
