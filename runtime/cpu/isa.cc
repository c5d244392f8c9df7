// Choosing the instruction set.
#include "runtime/cpu/isa.h"

#include "runtime/check.h"

#include <cstdlib>

namespace kvmesh::cpu {

Isa best_isa() {
  __builtin_cpu_init();  // looks at the operating system's XSAVE state as well
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  return avx2 ? Isa::avx2 : Isa::scalar;
}

namespace {

Isa chosen_isa() {
  const char* word = std::getenv("KVMESH_CPU_ISA");
  const Isa best = best_isa();
  if (!word || !*word) return best;
  for (int i = 0; i < 4; ++i) {
    if (word != isa_names[i]) continue;
    check(i <= static_cast<int>(best), "KVMESH_CPU_ISA={}: this CPU has only {}", word, isa_names[static_cast<int>(best)]);
    return static_cast<Isa>(i);
  }
  fail(Fault::usage, "KVMESH_CPU_ISA={}: not one of scalar, avx2, avx512, avx512_bf16", word);
}

}  // namespace

Isa isa() {
  static const Isa chosen = chosen_isa();
  return chosen;
}

}  // namespace kvmesh::cpu
