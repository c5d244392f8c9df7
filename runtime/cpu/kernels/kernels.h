// The kernels of one instruction set, as declared once for the files that define them; see table.h for what they do.
#pragma once

#include "runtime/cpu/kernels/table.h"

namespace kvmesh::cpu::KVMESH_ISA {

std::int64_t panel_bytes(WeightForm form, std::int64_t k);
void pack(const void* source, bool source_bf16, WeightForm form, std::int64_t k, std::int64_t n, std::int64_t begin, std::int64_t end, void* target);
std::int64_t block_rows(bool bf16, std::int64_t k);
std::size_t linear_scratch(WeightForm form, std::int64_t k, std::int64_t rows);
void linear(const LinearTask& task, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin, std::int64_t panel_end, void* scratch);
std::size_t attention_scratch(std::int64_t head_dim, std::int64_t rows);
void attention(const AttentionTask& task, void* scratch);
std::size_t row_scratch(std::int64_t width);
void norm(const NormTask& task, const void* x, void* out, void* scratch);
void add_row(void* x, const void* y, bool bf16, std::int64_t width, void* scratch);
void swiglu(const void* x, void* out, bool bf16, std::int64_t width, void* scratch);
void append(const AppendTask& task, void* scratch);
double multiply_registers(bool bf16, std::int64_t iterations);
void read_memory(const void* memory, std::int64_t bytes);

}  // namespace kvmesh::cpu::KVMESH_ISA
