// Weights in panels, and rows times panels.
// A panel holds `panel` columns: [steps][panel] words of 32 bits, a word being one float32 or the bfloat16 of k and k + 1.
// Columns beyond n and an odd last k are zeros.
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t steps_of(bool bf16, std::int64_t k) { return bf16 ? (k + 1) / 2 : k; }

/// Row stride of the copied rows, in elements of Left: a cache line more than a multiple of 4 KiB keeps rows in different sets.
constexpr std::int64_t copied_stride(bool bf16, std::int64_t k) {
  return round_up(steps_of(bf16, k) * (bf16 && left_is_widened ? 2 : 1), 16) + 16;
}

constexpr bool must_copy(bool bf16, std::int64_t k) { return bf16 && (left_is_widened || k % 2 != 0); }

void copy_rows(const LinearTask& t, std::int64_t begin, std::int64_t end, void* scratch) {
  const std::int64_t stride = copied_stride(true, t.k);
  for (std::int64_t r = begin; r < end; ++r) {
    if constexpr (left_is_widened) {
      float* to = static_cast<float*>(scratch) + (r - begin) * stride;
      read_floats(t.x, true, r * t.k, t.k, to);
      to[t.k] = 0;  // an odd k's partner
    } else {
      std::uint16_t* to = static_cast<std::uint16_t*>(scratch) + (r - begin) * stride * 2;
      __builtin_memcpy(to, static_cast<const std::uint16_t*>(t.x) + r * t.k, static_cast<std::size_t>(t.k) * 2);
      to[t.k] = 0;
    }
  }
}

KVMESH_INLINE Floats finish(const LinearTask& t, Floats x, Floats old) {
  if (t.relu_squared) {
    x = max(x, Floats{});
    x = x * x;
  }
  if (t.cap > 0) x = t.cap * tanh(x / t.cap);
  return t.add ? old + x : x;
}

/// Writes the first `columns` of a row's accumulators at element `at` of out.
template <int vectors>
KVMESH_INLINE void write(const LinearTask& t, const Floats (&acc)[vectors], std::int64_t at, std::int64_t columns) {
  if (columns < vectors * lanes) {
    float row[vectors * lanes] = {};
    if (t.add) read_floats(t.out, t.out_bf16, at, columns, row);
    for (int v = 0; v < vectors; ++v) store(row + v * lanes, finish(t, acc[v], load<Floats>(row + v * lanes)));
    write_floats(row, columns, t.out, t.out_bf16, at);
    return;
  }
  for (int v = 0; v < vectors; ++v) {
    const std::int64_t i = at + v * lanes;
    if (t.out_bf16) {
      std::uint16_t* out = static_cast<std::uint16_t*>(t.out) + i;
      store(out, narrow(finish(t, acc[v], t.add ? widen(load<Halves>(out)) : Floats{})));
    } else {
      float* out = static_cast<float*>(t.out) + i;
      store(out, finish(t, acc[v], t.add ? load<Floats>(out) : Floats{}));
    }
  }
}

template <typename Kind>
void run(const LinearTask& t, const typename Kind::Left* x, std::int64_t stride, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin,
         std::int64_t panel_end) {
  const std::int64_t steps = steps_of(t.bf16, t.k), rows = row_end - row_begin;
  const std::int64_t tiles = (rows + max_rows - 1) / max_rows;
  const std::int64_t ahead = tiles == 1 ? 16 * panel : 0;
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const auto* b = static_cast<const typename Kind::Right*>(t.w) + p * steps * panel;
    const std::int64_t columns = t.n - p * panel < panel ? t.n - p * panel : panel;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {  // tiles of nearly equal height
      const std::int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
      with_constant<max_rows>(static_cast<int>(last - first), [&](auto height) {
        Floats acc[height.value][max_vectors] = {};
        multiply<Kind, height.value, max_vectors>(x + first * stride, stride, b, panel, steps, ahead, acc);
        for (int m = 0; m < height.value; ++m) write(t, acc[m], (row_begin + first + m) * t.n + p * panel, columns);
      });
    }
  }
}

}  // namespace

std::int64_t panel_bytes(bool bf16, std::int64_t k) { return steps_of(bf16, k) * panel * 4; }

void pack(const void* source, bool source_bf16, bool bf16, std::int64_t k, std::int64_t n, std::int64_t begin, std::int64_t end, void* target) {
  const std::int64_t steps = steps_of(bf16, k);
  for (std::int64_t p = begin; p < end; ++p) {
    const std::int64_t columns = n - p * panel < panel ? n - p * panel : panel;
    for (std::int64_t s = 0; s < steps; ++s) {
      const std::int64_t at = (p * steps + s) * panel;
      float row[panel] = {};
      if (!bf16) {
        read_floats(source, source_bf16, s * n + p * panel, columns, row);
        __builtin_memcpy(static_cast<float*>(target) + at, row, sizeof(row));
        continue;
      }
      float next[panel] = {};
      read_floats(source, source_bf16, 2 * s * n + p * panel, columns, row);
      if (2 * s + 1 < k) read_floats(source, source_bf16, (2 * s + 1) * n + p * panel, columns, next);
      std::uint32_t* to = static_cast<std::uint32_t*>(target) + at;
      for (std::int64_t c = 0; c < panel; ++c) to[c] = narrow_one(row[c]) | static_cast<std::uint32_t>(narrow_one(next[c])) << 16;
    }
  }
}

std::size_t linear_scratch(bool bf16, std::int64_t k, std::int64_t rows) {
  return must_copy(bf16, k) ? static_cast<std::size_t>(copied_stride(bf16, k) * rows) * 4 : 0;
}

void linear(const LinearTask& t, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin, std::int64_t panel_end, void* scratch) {
  if (!t.bf16) {
    run<F32>(t, static_cast<const float*>(t.x) + row_begin * t.k, t.k, row_begin, row_end, panel_begin, panel_end);
  } else if (must_copy(true, t.k)) {
    copy_rows(t, row_begin, row_end, scratch);
    run<Bf16>(t, static_cast<const Bf16::Left*>(scratch), copied_stride(true, t.k), row_begin, row_end, panel_begin, panel_end);
  } else {
    if constexpr (!left_is_widened) {
      run<Bf16>(t, reinterpret_cast<const Bf16::Left*>(static_cast<const std::uint16_t*>(t.x) + row_begin * t.k), t.k / 2, row_begin, row_end, panel_begin,
                panel_end);
    }
  }
}

}  // namespace kvmesh::cpu::KVMESH_ISA
