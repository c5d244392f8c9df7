// Rows times the panels of a packed weight (panels.h).
#include "runtime/cpu/kernels/amx.h"
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/panels.h"

#include <type_traits>

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

/// Words of a panel that all tiles of rows meet before the next words: with many rows a good part of a second-level cache, with few of a first-level one.
constexpr std::int64_t part_words(std::int64_t tiles) { return tiles > 4 ? 16384 : 8192; }
constexpr std::int64_t most_widened = by_tiles ? 24576 : 16384;  // words of such a part
constexpr std::int64_t most_in_registers = 2 * max_rows;         // rows for which integers are widened in registers, in each tile: their few products leave time for it

/// Row stride of the copied rows, in words of 32 bits: a cache line more than a multiple of 4 KiB keeps rows in different sets.
constexpr std::int64_t copied_stride(std::int64_t k) { return round_up(steps_of(true, k) * (left_is_widened ? 2 : 1), 16) + 16; }

/// Rows are read where they are, but for bfloat16 that is to be widened or that does not fill its last word or tile.
constexpr bool must_copy(bool bf16, std::int64_t k) { return bf16 && (left_is_widened || k % (by_tiles ? 32 : 2) != 0); }

void copy_rows(const LinearTask& t, std::int64_t begin, std::int64_t end, void* scratch) {
  const std::int64_t stride = copied_stride(t.k);
  for (std::int64_t r = begin; r < end; ++r) {
    std::uint32_t* to = static_cast<std::uint32_t*>(scratch) + (r - begin) * stride;
    if constexpr (left_is_widened) {
      float* row = reinterpret_cast<float*>(to);
      read_floats(t.x, true, r * t.k, t.k, row);
      row[t.k] = 0;  // an odd k's partner
    } else {
      to[t.k / 2] = 0;
      for (std::int64_t i = t.k / 2; i < steps_of(true, t.k); ++i) to[i] = 0;
      __builtin_memcpy(to, static_cast<const std::uint16_t*>(t.x) + r * t.k, static_cast<std::size_t>(t.k) * 2);
    }
  }
}

/// The epilogues that are long: one copy of their code.
[[gnu::noinline]] Floats curve(const LinearTask& t, Floats x) {
  switch (t.epilogue) {
    case Epilogue::gelu: return gelu(x);
    case Epilogue::gelu_tanh: return gelu_tanh(x);
    default: return t.cap * tanh(x / t.cap);
  }
}

KVMESH_INLINE Floats finish(const LinearTask& t, Floats x, Floats old) {
  switch (t.epilogue) {
    case Epilogue::none: return x;
    case Epilogue::add: return old + x;
    case Epilogue::relu_squared: x = max(x, Floats{}); return x * x;
    default: return curve(t, x);
  }
}

/// Writes the first `columns` of a row's accumulators, from column `column` on. `scales` [panel]: of integers, else null.
template <int vectors>
KVMESH_INLINE void write(const LinearTask& t, Floats (&acc)[vectors], const float* scales, std::int64_t row, std::int64_t column, std::int64_t columns) {
  const bool add = t.epilogue == Epilogue::add;
  const std::int64_t at = row * t.stride + column;
  if (scales) {
    for (int v = 0; v < vectors; ++v) acc[v] = acc[v] * load<Floats>(scales + v * lanes);
  }
  if (columns < vectors * lanes) {
    float bias[vectors * lanes] = {}, old[vectors * lanes] = {};
    if (t.bias) read_floats(t.bias, false, column, columns, bias);
    if (add) read_floats(t.out, t.out_bf16, at, columns, old);
    for (int v = 0; v < vectors; ++v) store(old + v * lanes, finish(t, t.bias ? acc[v] + load<Floats>(bias + v * lanes) : acc[v], load<Floats>(old + v * lanes)));
    write_floats(old, columns, t.out, t.out_bf16, at);
    return;
  }
  for (int v = 0; v < vectors; ++v) {
    const std::int64_t i = at + v * lanes;
    if (t.bias) acc[v] = acc[v] + load<Floats>(t.bias + column + v * lanes);
    if (t.out_bf16) {
      std::uint16_t* out = static_cast<std::uint16_t*>(t.out) + i;
      store(out, narrow(finish(t, acc[v], add ? widen(load<Halves>(out)) : Floats{})));
    } else {
      float* out = static_cast<float*>(t.out) + i;
      store(out, finish(t, acc[v], add ? load<Floats>(out) : Floats{}));
    }
  }
}

/// f(accumulator, its offset in rows of a panel).
template <int rows, typename F>
KVMESH_INLINE void each(Floats (&acc)[rows][max_vectors], const F& f) {
#pragma GCC unroll 6
  for (int m = 0; m < rows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < max_vectors; ++v) f(acc[m][v], m * panel + v * lanes);
  }
}

/// What pass `i` of `passes` over a part of a panel, `bytes` long, asks the caches for: `alone` what it needs itself a little later, else its share of what
/// the passes over the next part need, so that memory is read while there is arithmetic to do.
KVMESH_INLINE Prefetch prefetch_of(const void* part, std::int64_t bytes, std::int64_t steps, std::int64_t i, std::int64_t passes, bool alone) {
  constexpr std::int64_t soon = 4096;
  const char* from = static_cast<const char*>(part) + (alone ? soon : bytes);
  const std::int64_t lines = bytes / 64;
  return {from + lines * i / passes * 64, from + lines * (i + 1) / passes * 64, static_cast<int>((lines + passes * steps - 1) / (passes * steps)), alone};
}

/// A panel's scales, null where there are none, and its elements.
struct Panel {
  const float* scales;
  const void* elements;
};
KVMESH_INLINE Panel panel_of(const LinearTask& t, std::int64_t p) {
  const char* at = static_cast<const char*>(t.w) + p * bytes_of_panel(t.form(), t.k);
  return {t.int8 ? reinterpret_cast<const float*>(at) : nullptr, at + (t.int8 ? scale_bytes : 0)};
}

/// Elements of what lies as `Stored` that a step of `Kind` reads.
template <typename Kind, typename Stored>
constexpr std::int64_t elements_per_step = sizeof(Stored) == 1 ? Kind::k_per_step * panel : panel;

/// One or two rows, as `run`: all of K at once, two panels at a time. Leaves the last of an odd number of panels and says which it is.
template <typename Kind, typename Stored>
std::int64_t run_two(const LinearTask& t, const typename Kind::Left* x, std::int64_t stride, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin,
                     std::int64_t panel_end) {
  const std::int64_t apart = bytes_of_panel(t.form(), t.k) / static_cast<std::int64_t>(sizeof(Stored));
  std::int64_t p = panel_begin;
  for (; p + 1 < panel_end; p += 2) {
    with_constant<2>(static_cast<int>(row_end - row_begin), [&](auto height) {
      Floats acc[2][height.value][max_vectors] = {};
      multiply_two<Kind, height.value, max_vectors>(x, stride, static_cast<const Stored*>(panel_of(t, p).elements), apart, elements_per_step<Kind, Stored>,
                                                    steps_of(t.bf16, t.k), acc);
      for (int i = 0; i < 2; ++i) {
        const std::int64_t left = t.n - (p + i) * panel;
        for (int m = 0; m < height.value; ++m) write(t, acc[i][m], panel_of(t, p + i).scales, row_begin + m, (p + i) * panel, left < panel ? left : panel);
      }
    });
  }
  return p;
}

/// Multiplies by what lies as `Stored`, which `widens` to words, a part at a time, before all tiles meet it, or in each tile's registers. x: the rows from
/// row_begin on; sums [rows, panel] and words [part_words] are scratch memory.
template <typename Kind, typename Stored, bool widens = false>
void run(const LinearTask& t, const typename Kind::Left* x, std::int64_t stride, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin,
         std::int64_t panel_end, float* sums, typename Kind::Right* words = nullptr) {
  using Met = std::conditional_t<widens, typename Kind::Right, Stored>;
  constexpr std::int64_t stored_row = elements_per_step<Kind, Stored>, met_row = elements_per_step<Kind, Met>;
  const std::int64_t steps = steps_of(t.bf16, t.k), rows = row_end - row_begin;
  const std::int64_t tiles = (rows + max_rows - 1) / max_rows, part = tiles == 1 && !widens ? steps : part_words(tiles) / panel;
  if (!widens && rows <= 2) panel_begin = run_two<Kind, Stored>(t, x, stride, row_begin, row_end, panel_begin, panel_end);
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const Panel from = panel_of(t, p);
    const std::int64_t columns = t.n - p * panel < panel ? t.n - p * panel : panel;
    for (std::int64_t s = 0; s < steps; s += part) {
      const std::int64_t count = steps - s < part ? steps - s : part;
      const Stored* stored = static_cast<const Stored*>(from.elements) + s * stored_row;
      const Met* met;
      if constexpr (widens) {
        widen_steps<Kind>(stored, count, words);
        met = words;
      } else {
        met = stored;
      }
      for (std::int64_t tile = 0; tile < tiles; ++tile) {  // tiles of nearly equal height
        const std::int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
        const Prefetch prefetch = prefetch_of(stored, count * stored_row * static_cast<std::int64_t>(sizeof(Stored)), count, tile, tiles, tiles == 1 && !widens);
        with_constant<max_rows>(static_cast<int>(last - first), [&](auto height) {
          Floats acc[height.value][max_vectors] = {};
          float* kept = sums + first * panel;
          if (s > 0) each(acc, [&](Floats& a, std::int64_t at) { a = load<Floats>(kept + at); });
          multiply<Kind, height.value, max_vectors>(x + first * stride + s * Kind::left_per_step, stride, met, met_row, count, prefetch, acc);
          if (s + count < steps) {
            each(acc, [&](Floats& a, std::int64_t at) { store(kept + at, a); });
          } else {
            for (int m = 0; m < height.value; ++m) write(t, acc[m], from.scales, row_begin + first + m, p * panel, columns);
          }
        });
      }
    }
  }
}

#if defined(__AMX_BF16__)
static_assert(panel == 64);
constexpr std::int64_t part_spans = most_widened / (span_words * panel);  // of a panel that all rows of a block meet before the next: 24, 96 KiB
constexpr std::int64_t few_spans = 6;    // of integers that one pass widens and meets: 24 KiB

/// x: the rows from row_begin on, each `stride` words; sums [rows rounded up to 16, panel] and widened [part_spans spans of a panel] are scratch memory.
void run_tiles(const LinearTask& t, const std::uint32_t* x, std::int64_t stride, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin,
               std::int64_t panel_end, float* sums, std::uint32_t* widened) {
  constexpr std::int64_t pair = 2 * tile_height;
  const std::int64_t spans = steps_of(true, t.k) / span_words, rows = row_end - row_begin;
  const std::int64_t passes = rows <= tile_height ? 1 : (rows + pair - 1) / pair * 2, part = passes > 1 ? part_spans : t.int8 ? few_spans : spans;
  const std::int64_t span_bytes = span_words * bytes_per_step(t.form());
  Tiles tiles;
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const Panel from = panel_of(t, p);
    const std::int64_t columns = t.n - p * panel < panel ? t.n - p * panel : panel;
    for (std::int64_t s = 0; s < spans; s += part) {
      const std::int64_t count = spans - s < part ? spans - s : part;
      const char* stored = static_cast<const char*>(from.elements) + s * span_bytes;
      const std::uint32_t* w = t.int8 ? widened : reinterpret_cast<const std::uint32_t*>(stored);
      if (t.int8) widen_steps<Bf16>(reinterpret_cast<const std::int8_t*>(stored), count * span_words, widened);
      written(widened);
      for (std::int64_t r = 0, pass = 0; r < rows; r += pair) {
        const std::int64_t left = rows - r, height = left < pair ? left : pair;
        float* kept = sums + r * panel;
        const auto task = [&](std::int64_t column) {
          return TileTask{.x = x + r * stride + s * span_words,
                          .x_row = stride * 4,
                          .x_step = span_words,
                          .below = tile_height * stride,
                          .w = w + column,
                          .w_row = panel * 4,
                          .spans = count,
                          .rounds = 1,
                          .sums = kept + column,
                          .sums_row = panel * 4,
                          .more = s > 0,
                          .prefetch = prefetch_of(stored, count * span_bytes, count, pass++, passes, passes == 1 && !t.int8)};
        };
        if (height <= tile_height) {
          tiles.shape(height, 0);
          multiply_upper<4>(task(0));
        } else {
          tiles.shape(tile_height, height - tile_height);
          multiply_pair<2>(task(0));
          multiply_pair<2>(task(panel / 2));
        }
        if (s + count < spans) continue;
        for (std::int64_t m = 0; m < height; ++m) {
          Floats acc[max_vectors];
          for (int v = 0; v < max_vectors; ++v) acc[v] = load<Floats>(kept + m * panel + v * lanes);
          write(t, acc, from.scales, row_begin + r + m, p * panel, columns);
        }
      }
    }
  }
  tiles.release();
}
#endif

}  // namespace

std::int64_t block_rows(bool bf16, std::int64_t k) {
  constexpr std::int64_t most = 512, least = 64, bytes = 768 << 10;
  if (!bf16 || !by_tiles) return most / max_rows * max_rows;
  const std::int64_t fitting = bytes / (steps_of(true, k) * 4) / 32 * 32;
  return fitting < least ? least : fitting < most ? fitting : most;
}

std::size_t linear_scratch(WeightForm form, std::int64_t k, std::int64_t rows) {
  const std::int64_t copy = must_copy(form.bf16, k) ? copied_stride(k) : 0;
  return static_cast<std::size_t>(round_up(rows, 16) * (panel + copy) + (form.int8 ? most_widened : 0)) * 4;
}

void linear(const LinearTask& t, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin, std::int64_t panel_end, void* scratch) {
  const std::int64_t rows = row_end - row_begin;
  float* sums = static_cast<float*>(scratch);
  std::uint32_t* copy = static_cast<std::uint32_t*>(scratch) + round_up(rows, 16) * panel;
  const bool copies = must_copy(t.bf16, t.k);
  std::uint32_t* widened = copy + (copies ? round_up(rows, 16) * copied_stride(t.k) : 0);
  const auto run_kind = [&]<typename Kind>(Kind, const void* x, std::int64_t stride) {
    const auto* left = static_cast<const typename Kind::Left*>(x);
    if (!t.int8) run<Kind, typename Kind::Right>(t, left, stride, row_begin, row_end, panel_begin, panel_end, sums);
    else if (rows <= most_in_registers) run<Kind, std::int8_t>(t, left, stride, row_begin, row_end, panel_begin, panel_end, sums);
    else run<Kind, std::int8_t, true>(t, left, stride, row_begin, row_end, panel_begin, panel_end, sums, reinterpret_cast<typename Kind::Right*>(widened));
  };
  if (!t.bf16) return run_kind(F32(), static_cast<const float*>(t.x) + row_begin * t.k, t.k);
  const void* x = static_cast<const std::uint16_t*>(t.x) + row_begin * t.k;
  if (copies) {
    copy_rows(t, row_begin, row_end, copy);
    x = copy;
  }
  const std::int64_t stride = copies ? copied_stride(t.k) : t.k / 2;
#if defined(__AMX_BF16__)
  run_tiles(t, static_cast<const std::uint32_t*>(x), stride, row_begin, row_end, panel_begin, panel_end, sums, widened);
#else
  run_kind(Bf16(), x, stride);
#endif
}

}  // namespace kvmesh::cpu::KVMESH_ISA
