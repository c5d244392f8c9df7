// Choosing the instruction set.
#include "runtime/cpu/isa.h"

#include "runtime/check.h"

#include <fmt/ranges.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>

namespace kvmesh::cpu {
namespace {

/// Whether AMX multiplies bfloat16 here; asks Linux to let this process's threads use its registers, which are off until someone asks.
bool has_amx() {
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

Isa best_isa() {
  __builtin_cpu_init();  // looks at the operating system's XSAVE state as well
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi")) return has_amx() ? Isa::amx : Isa::avx512_bf16;
  if (avx512) return Isa::avx512;
  return avx2 ? Isa::avx2 : Isa::scalar;
}

namespace {

Isa chosen_isa() {
  const char* word = std::getenv("KVMESH_CPU_ISA");
  const Isa best = best_isa();
  if (!word || !*word) return best;
  for (int i = 0; i < 5; ++i) {
    if (word != isa_names[i]) continue;
    check(i <= static_cast<int>(best), "KVMESH_CPU_ISA={}: this CPU has only {}", word, isa_names[static_cast<int>(best)]);
    return static_cast<Isa>(i);
  }
  fail(Fault::usage, "KVMESH_CPU_ISA={}: not one of {}", word, fmt::join(isa_names, ", "), word);
}

}  // namespace

Isa isa() {
  static const Isa chosen = chosen_isa();
  return chosen;
}

}  // namespace kvmesh::cpu
