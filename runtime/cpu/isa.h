// Which instruction set the kernels run on: the best this CPU has, or less when KVMESH_CPU_ISA says so.
#pragma once

#include <string_view>

namespace kvmesh::cpu {

enum class Isa { scalar, avx2, avx512, avx512_bf16, amx };
constexpr std::string_view isa_names[] = {"scalar", "avx2", "avx512", "avx512_bf16", "amx"};

/// The best instruction set that this CPU and its operating system offer.
Isa best_isa();

/// best_isa(), capped by the environment variable KVMESH_CPU_ISA (one of isa_names; an Error for another word or for one
/// that this CPU lacks). Read once, at the first call; the same for the whole process.
Isa isa();

}  // namespace kvmesh::cpu
