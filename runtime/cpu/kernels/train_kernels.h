// The training kernels of one instruction set, as declared once for the files that define them; see train_table.h for what they do.
#pragma once

#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/train_table.h"

namespace kvmesh::cpu::KVMESH_ISA {

void transpose_rows(const void* x, bool bf16, std::int64_t columns, std::int64_t begin, std::int64_t end, void* out, bool out_bf16, std::int64_t stride);
std::size_t attention_backward_scratch(std::int64_t head_dim, std::int64_t tokens, bool bf16);
void attention_backward(const AttentionBackwardTask& task, void* scratch);
void add(float* inout, const float* x, std::int64_t count);

}  // namespace kvmesh::cpu::KVMESH_ISA
