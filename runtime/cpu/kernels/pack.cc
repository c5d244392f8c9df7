// A weight's rows into panels (panels.h), rounded to bfloat16 or to integers where these are what is kept.
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/panels.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

/// Row k of a panel's columns from `source`, zeros beyond its edges.
struct Columns {
  const void* source;
  bool bf16;
  std::int64_t k, n, first, count;

  KVMESH_INLINE void read(std::int64_t i, float (&row)[panel]) const {
    if (i < k) read_floats(source, bf16, i * n + first, count, row);
    else __builtin_memset(row, 0, sizeof(row));
  }
};

void pack_words(const Columns& from, bool bf16, std::int64_t steps, std::uint32_t* to) {
  float row[panel] = {}, next[panel] = {};
  for (std::int64_t s = 0; s < steps; ++s, to += panel) {
    if (!bf16) {
      from.read(s, row);
      __builtin_memcpy(to, row, sizeof(row));
      continue;
    }
    from.read(2 * s, row);
    from.read(2 * s + 1, next);
    for (std::int64_t c = 0; c < panel; ++c) to[c] = narrow_one(row[c]) | static_cast<std::uint32_t>(narrow_one(next[c])) << 16;
  }
}

/// A column's scale is its largest magnitude / 127; its integers are its elements / scale, rounded to nearest, ties to even. Zeros have the scale 0.
void pack_integers(const Columns& from, bool bf16, std::int64_t rows, float* scales, std::int8_t* to) {
  float row[panel] = {}, most[panel] = {};
  for (std::int64_t i = 0; i < from.k; ++i) {
    from.read(i, row);
    for (std::int64_t c = 0; c < panel; ++c) {
      const float a = row[c] < 0 ? -row[c] : row[c];
      most[c] = a > most[c] ? a : most[c];
    }
  }
  for (std::int64_t c = 0; c < panel; ++c) scales[c] = most[c] / 127.0f;
  for (std::int64_t i = 0; i < rows; ++i) {
    std::int8_t* const step = to + (bf16 ? i / 2 * 2 : i) * panel;
    from.read(i, row);
    for (std::int64_t c = 0; c < panel; ++c) {
      const float x = scales[c] > 0 ? row[c] / scales[c] : 0.0f;
      const float bound = x > 127 ? 127.0f : x < -127 ? -127.0f : x;  // a scale below the normal numbers is coarse
      constexpr float shift = 12582912.0f;  // 1.5 · 2²³: adding it rounds to an integer
      step[bf16 ? place_in_step(c, i % 2) : c] = kept_integer(bf16, static_cast<std::int32_t>(bound + shift - shift));
    }
  }
}

}  // namespace

std::int64_t panel_bytes(WeightForm form, std::int64_t k) { return bytes_of_panel(form, k); }

void pack(const void* source, bool source_bf16, WeightForm form, std::int64_t k, std::int64_t n, std::int64_t begin, std::int64_t end, void* target) {
  for (std::int64_t p = begin; p < end; ++p) {
    const Columns from = {source, source_bf16, k, n, p * panel, n - p * panel < panel ? n - p * panel : panel};
    char* to = static_cast<char*>(target) + p * bytes_of_panel(form, k);
    const std::int64_t steps = steps_of(form.bf16, k);
    if (form.int8) pack_integers(from, form.bf16, form.bf16 ? 2 * steps : steps, reinterpret_cast<float*>(to), reinterpret_cast<std::int8_t*>(to + scale_bytes));
    else pack_words(from, form.bf16, steps, reinterpret_cast<std::uint32_t*>(to));
  }
}

}  // namespace kvmesh::cpu::KVMESH_ISA
