// Products of bfloat16 tiles by AMX: 16 rows of 32 k times 32 k of 16 columns. One output element is the same chain of operations over spans of 32 k,
// whatever the number of rows: each span's even and odd k are summed apart from zero, then added to each other and to the chain.
#pragma once

#include "runtime/cpu/kernels/tile.h"

#if defined(__AMX_BF16__)
namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t tile_height = 16;               // rows of a tile, columns of a tile, and its words of 32 bits a row
constexpr std::int64_t tile_words = tile_height * 16;  // of 32 bits: a whole tile
constexpr std::int64_t span_words = 16;                // of 32 bits, that is pairs of k, in one product

/// The compiler's tile loads do not say that they read memory: what they read must be written before.
KVMESH_INLINE void written(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

/// The tile registers' shapes. Tiles 0 … 3 are sums, [upper or only rows, lower rows] by columns; 4 and 5 left sides of those rows; 6 and 7 right sides.
class Tiles {
 public:
  /// The rows of the tiles: `upper` of 1 … 16, `lower` of 0 … 16; with lower = 0 tiles 0 … 3 are all of the upper rows and 5 is a right side.
  void shape(std::int64_t upper, std::int64_t lower) {
    if (upper == upper_ && lower == lower_) return;
    upper_ = upper;
    lower_ = lower;
    struct {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    constexpr int tile_count = 8;
    const std::int64_t below = lower > 0 ? lower : upper, heights[tile_count] = {upper, upper, below, below, upper, lower > 0 ? lower : tile_height, 16, 16};
    for (int i = 0; i < tile_count; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = static_cast<std::uint8_t>(heights[i]);
    }
    written(&config);
    _tile_loadconfig(&config);
  }

  /// To be called at the end; the registers are as before. (A destructor would bring exception handling into these files.)
  void release() { _tile_release(); }

 private:
  std::int64_t upper_ = -1, lower_ = -1;
};

/// One product: sums = x · w or, with `more`, sums + x · w. x has a tile for each span, then as many for each further round, which meet the same
/// w [spans · 16, columns].
struct TileTask {
  const std::uint32_t* x;  // the first upper tile
  std::int64_t x_row;      // bytes from row to row of a tile
  std::int64_t x_step;     // words from tile to tile
  std::int64_t below;      // words from an upper tile to the lower one
  const std::uint32_t* w;
  std::int64_t w_row;  // bytes
  std::int64_t spans, rounds;
  float* sums;
  std::int64_t sums_row;  // bytes
  bool more;
  Prefetch prefetch;
};

/// 1 … 16 rows (Tiles::shape(rows, 0)) by `columns` tiles of columns.
template <int columns>
KVMESH_INLINE void multiply_upper(TileTask t) {
  written(t.x);
  if (t.more) {
    _tile_loadd(0, t.sums, t.sums_row);
    if constexpr (columns > 1) _tile_loadd(1, t.sums + 16, t.sums_row);
    if constexpr (columns > 2) _tile_loadd(2, t.sums + 32, t.sums_row);
    if constexpr (columns > 3) _tile_loadd(3, t.sums + 48, t.sums_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const std::int64_t step = span_words * t.w_row / 4;
  for (std::int64_t round = 0; round < t.rounds; ++round) {
    const std::uint32_t* w = t.w;
    for (std::int64_t s = 0; s < t.spans; ++s, t.x += t.x_step, w += step) {
      t.prefetch.step();
      _tile_loadd(4, t.x, t.x_row);
      _tile_loadd(6, w, t.w_row);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (columns > 1) {
        _tile_loadd(7, w + 16, t.w_row);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (columns > 2) {
        _tile_loadd(5, w + 32, t.w_row);
        _tile_dpbf16ps(2, 4, 5);
      }
      if constexpr (columns > 3) {
        _tile_loadd(6, w + 48, t.w_row);
        _tile_dpbf16ps(3, 4, 6);
      }
    }
  }
  _tile_stored(0, t.sums, t.sums_row);
  if constexpr (columns > 1) _tile_stored(1, t.sums + 16, t.sums_row);
  if constexpr (columns > 2) _tile_stored(2, t.sums + 32, t.sums_row);
  if constexpr (columns > 3) _tile_stored(3, t.sums + 48, t.sums_row);
}

/// 17 … 32 rows (Tiles::shape(16, rows - 16)) by 1 or 2 tiles of columns.
template <int columns>
KVMESH_INLINE void multiply_pair(TileTask t) {
  written(t.x);
  float* lower = t.sums + tile_height * t.sums_row / 4;
  if (t.more) {
    _tile_loadd(0, t.sums, t.sums_row);
    _tile_loadd(2, lower, t.sums_row);
    if constexpr (columns > 1) _tile_loadd(1, t.sums + 16, t.sums_row);
    if constexpr (columns > 1) _tile_loadd(3, lower + 16, t.sums_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const std::int64_t step = span_words * t.w_row / 4;
  for (std::int64_t round = 0; round < t.rounds; ++round) {
    const std::uint32_t* w = t.w;
    for (std::int64_t s = 0; s < t.spans; ++s, t.x += t.x_step, w += step) {
      t.prefetch.step();
      _tile_loadd(4, t.x, t.x_row);
      _tile_loadd(6, w, t.w_row);
      if constexpr (columns > 1) _tile_loadd(7, w + 16, t.w_row);
      _tile_loadd(5, t.x + t.below, t.x_row);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (columns > 1) _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (columns > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, t.sums, t.sums_row);
  _tile_stored(2, lower, t.sums_row);
  if constexpr (columns > 1) _tile_stored(1, t.sums + 16, t.sums_row);
  if constexpr (columns > 1) _tile_stored(3, lower + 16, t.sums_row);
}

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
#endif
