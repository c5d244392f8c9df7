// Weights in panels, and rows times panels.
// A panel holds `panel` columns: [steps][panel] words of 32 bits, a word being one float32 or the bfloat16 of k and k + 1.
// Columns beyond n and an odd last k are zeros.
#include "runtime/cpu/kernels/amx.h"
#include "runtime/cpu/kernels/kernels.h"
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/tile.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

/// Words of a panel that all tiles of rows meet before the next words: with many rows a good part of a second-level cache, with few of a first-level one.
constexpr std::int64_t part_words(std::int64_t tiles) { return tiles > 4 ? 16384 : 8192; }

constexpr std::int64_t steps_of(bool bf16, std::int64_t k) { return !bf16 ? k : by_tiles ? round_up((k + 1) / 2, 16) : (k + 1) / 2; }

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

/// Writes the first `columns` of a row's accumulators, from column `column` on.
template <int vectors>
KVMESH_INLINE void write(const LinearTask& t, Floats (&acc)[vectors], std::int64_t row, std::int64_t column, std::int64_t columns) {
  const bool add = t.epilogue == Epilogue::add;
  const std::int64_t at = row * t.n + column;
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

/// What pass `i` of `passes` over a part of a panel, `bytes` long, asks the caches for: alone what it needs itself a little later, else its share of what
/// the passes over the next part need, so that memory is read while there is arithmetic to do.
KVMESH_INLINE Prefetch prefetch_of(const void* part, std::int64_t bytes, std::int64_t steps, std::int64_t i, std::int64_t passes) {
  constexpr std::int64_t soon = 4096;
  const char* from = static_cast<const char*>(part) + (passes == 1 ? soon : bytes);
  const std::int64_t lines = bytes / 64;
  return {from + lines * i / passes * 64, from + lines * (i + 1) / passes * 64, static_cast<int>((lines + passes * steps - 1) / (passes * steps)), passes == 1};
}

/// x: the rows from row_begin on; sums [rows, panel] is scratch memory.
template <typename Kind>
void run(const LinearTask& t, const typename Kind::Left* x, std::int64_t stride, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin,
         std::int64_t panel_end, float* sums) {
  const std::int64_t steps = steps_of(t.bf16, t.k), rows = row_end - row_begin;
  const std::int64_t tiles = (rows + max_rows - 1) / max_rows, part = tiles == 1 ? steps : part_words(tiles) / panel;
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const auto* b = static_cast<const typename Kind::Right*>(t.w) + p * steps * panel;
    const std::int64_t columns = t.n - p * panel < panel ? t.n - p * panel : panel;
    for (std::int64_t s = 0; s < steps; s += part) {
      const std::int64_t count = steps - s < part ? steps - s : part;
      for (std::int64_t tile = 0; tile < tiles; ++tile) {  // tiles of nearly equal height
        const std::int64_t first = rows * tile / tiles, last = rows * (tile + 1) / tiles;
        const Prefetch prefetch = prefetch_of(b + s * panel, count * panel * 4, count, tile, tiles);
        with_constant<max_rows>(static_cast<int>(last - first), [&](auto height) {
          Floats acc[height.value][max_vectors] = {};
          float* kept = sums + first * panel;
          if (s > 0) each(acc, [&](Floats& a, std::int64_t at) { a = load<Floats>(kept + at); });
          multiply<Kind, height.value, max_vectors>(x + first * stride + s * Kind::left_per_step, stride, b + s * panel, panel, count, prefetch, acc);
          if (s + count < steps) {
            each(acc, [&](Floats& a, std::int64_t at) { store(kept + at, a); });
          } else {
            for (int m = 0; m < height.value; ++m) write(t, acc[m], row_begin + first + m, p * panel, columns);
          }
        });
      }
    }
  }
}

#if defined(__AMX_BF16__)
static_assert(panel == 64);
constexpr std::int64_t part_spans = 24;  // of a panel that all rows of a block meet before the next: 96 KiB

/// x: the rows from row_begin on, each `stride` words; sums [rows rounded up to 16, panel] is scratch memory.
void run_tiles(const LinearTask& t, const std::uint32_t* x, std::int64_t stride, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin,
               std::int64_t panel_end, float* sums) {
  constexpr std::int64_t pair = 2 * tile_height;
  const std::int64_t spans = steps_of(true, t.k) / span_words, rows = row_end - row_begin;
  const std::int64_t passes = rows <= tile_height ? 1 : (rows + pair - 1) / pair * 2, part = passes == 1 ? spans : part_spans;
  Tiles tiles;
  for (std::int64_t p = panel_begin; p < panel_end; ++p) {
    const auto* panel_words = static_cast<const std::uint32_t*>(t.w) + p * spans * span_words * panel;
    const std::int64_t columns = t.n - p * panel < panel ? t.n - p * panel : panel;
    for (std::int64_t s = 0; s < spans; s += part) {
      const std::int64_t count = spans - s < part ? spans - s : part;
      const std::uint32_t* w = panel_words + s * span_words * panel;
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
                          .prefetch = prefetch_of(w, count * span_words * panel * 4, count, pass++, passes)};
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
          write(t, acc, row_begin + r + m, p * panel, columns);
        }
      }
    }
  }
  tiles.release();
}
#endif

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
      if (2 * s < k) read_floats(source, source_bf16, 2 * s * n + p * panel, columns, row);
      if (2 * s + 1 < k) read_floats(source, source_bf16, (2 * s + 1) * n + p * panel, columns, next);
      std::uint32_t* to = static_cast<std::uint32_t*>(target) + at;
      for (std::int64_t c = 0; c < panel; ++c) to[c] = narrow_one(row[c]) | static_cast<std::uint32_t>(narrow_one(next[c])) << 16;
    }
  }
}

std::int64_t block_rows(bool bf16, std::int64_t k) {
  constexpr std::int64_t most = 512, least = 64, bytes = 768 << 10;
  if (!bf16 || !by_tiles) return most / max_rows * max_rows;
  const std::int64_t fitting = bytes / (steps_of(true, k) * 4) / 32 * 32;
  return fitting < least ? least : fitting < most ? fitting : most;
}

std::size_t linear_scratch(bool bf16, std::int64_t k, std::int64_t rows) {
  return static_cast<std::size_t>(round_up(rows, 16) * (panel + (must_copy(bf16, k) ? copied_stride(k) : 0))) * 4;
}

void linear(const LinearTask& t, std::int64_t row_begin, std::int64_t row_end, std::int64_t panel_begin, std::int64_t panel_end, void* scratch) {
  float* sums = static_cast<float*>(scratch);
  if (!t.bf16) {
    run<F32>(t, static_cast<const float*>(t.x) + row_begin * t.k, t.k, row_begin, row_end, panel_begin, panel_end, sums);
    return;
  }
  const void* x = static_cast<const std::uint16_t*>(t.x) + row_begin * t.k;
  std::int64_t stride = t.k / 2;
  if (must_copy(true, t.k)) {
    void* copy = sums + round_up(row_end - row_begin, 16) * panel;
    copy_rows(t, row_begin, row_end, copy);
    x = copy;
    stride = copied_stride(t.k);
  }
#if defined(__AMX_BF16__)
  run_tiles(t, static_cast<const std::uint32_t*>(x), stride, row_begin, row_end, panel_begin, panel_end, sums);
#else
  run<Bf16>(t, static_cast<const Bf16::Left*>(x), stride, row_begin, row_end, panel_begin, panel_end, sums);
#endif
}

}  // namespace kvmesh::cpu::KVMESH_ISA
