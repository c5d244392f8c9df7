// The table of this instruction set.
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {

const Kernels kernels = {panel,       panel_bytes, pack,   block_rows, linear_scratch,     linear,     attention_scratch,
                         attention,   row_scratch, norm,   add_row,    swiglu, append,   multiply_registers, read_memory};

}  // namespace kvmesh::cpu::KVMESH_ISA
