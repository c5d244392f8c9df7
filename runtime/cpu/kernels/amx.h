// Products of bfloat16 tiles by AMX: 16 rows of 32 k times 32 k of 16 columns. One output element is the same chain of operations over spans of 32 k,
// whatever the number of rows: each span's even and odd k are summed apart from zero, then added to each other and to the chain.
#pragma once

#include "runtime/cpu/kernels/tile.h"

#if defined(__AMX_BF16__)
namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr std::int64_t tile_height = 16;                    // rows of a tile, and its words of 32 bits a row
constexpr std::int64_t tile_words = tile_height * 16;       // of 32 bits: a whole tile
constexpr std::int64_t span_words = 16;                     // of 32 bits, that is pairs of k, in one product

/// The compiler's tile loads do not say that they read memory: what they read must be written before.
KVMESH_INLINE void written(const void* memory) { asm volatile("" : : "r"(memory) : "memory"); }

/// Tiles 0 … 3 are sums, [upper or only rows, lower rows] by columns; 4 and 5 left sides of those rows; 6 and 7 right sides.
class Tiles {
 public:
  /// The rows of the tiles: `upper` of 1 … 16, `lower` of 0 … 16; with lower = 0 tiles 0 … 3 are all of the upper rows.
  void shape(int upper, int lower) {
    if (upper == upper_ && lower == lower_) return;
    upper_ = upper;
    lower_ = lower;
    struct {
      std::uint8_t palette = 1, start = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {};
      std::uint8_t rows[16] = {};
    } config;
    constexpr int tile_count = 8;
    const int heights[tile_count] = {upper, upper, lower > 0 ? lower : upper, lower > 0 ? lower : upper, upper, lower > 0 ? lower : 16, 16, 16};
    for (int i = 0; i < tile_count; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = static_cast<std::uint8_t>(heights[i]);
    }
    written(&config);
    _tile_loadconfig(&config);
  }

  /// To be called at the end; the registers are as before. (A destructor would bring exception handling into this file.)
  void release() { _tile_release(); }

 private:
  int upper_ = -1, lower_ = -1;
};

constexpr int panel_bytes_a_row = 4 * 64;

/// Asks the caches for a span's share of `prefetch`.
KVMESH_INLINE void fetch(Prefetch& prefetch) {
  for (int i = 0; i < prefetch.lines && prefetch.next < prefetch.end; ++i, prefetch.next += 64) __builtin_prefetch(prefetch.next);
}

/// sums [16, 64] = x · w, added to what is in sums when `more`; x [spans] tiles, w [spans · 16, 64] words.
KVMESH_INLINE void multiply_upper(const std::uint32_t* x, const std::uint32_t* w, std::int64_t spans, bool more, float* sums, Prefetch prefetch) {
  written(x);
  if (more) {
    _tile_loadd(0, sums, panel_bytes_a_row);
    _tile_loadd(1, sums + 16, panel_bytes_a_row);
    _tile_loadd(2, sums + 32, panel_bytes_a_row);
    _tile_loadd(3, sums + 48, panel_bytes_a_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t s = 0; s < spans; ++s, x += tile_words, w += span_words * 64) {
    fetch(prefetch);
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, panel_bytes_a_row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, w + 16, panel_bytes_a_row);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, w + 32, panel_bytes_a_row);
    _tile_dpbf16ps(2, 4, 5);
    _tile_loadd(6, w + 48, panel_bytes_a_row);
    _tile_dpbf16ps(3, 4, 6);
  }
  _tile_stored(0, sums, panel_bytes_a_row);
  _tile_stored(1, sums + 16, panel_bytes_a_row);
  _tile_stored(2, sums + 32, panel_bytes_a_row);
  _tile_stored(3, sums + 48, panel_bytes_a_row);
}

/// Half of the columns of sums [32, 64], else as multiply_upper; the lower tiles of x lie `below` words behind the upper ones.
KVMESH_INLINE void multiply_half(const std::uint32_t* x, std::int64_t below, const std::uint32_t* w, std::int64_t spans, bool more, float* sums,
                                 Prefetch prefetch) {
  written(x);
  float* lower = sums + tile_height * 64;
  if (more) {
    _tile_loadd(0, sums, panel_bytes_a_row);
    _tile_loadd(1, sums + 16, panel_bytes_a_row);
    _tile_loadd(2, lower, panel_bytes_a_row);
    _tile_loadd(3, lower + 16, panel_bytes_a_row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t s = 0; s < spans; ++s, x += tile_words, w += span_words * 64) {
    fetch(prefetch);
    _tile_loadd(4, x, 64);
    _tile_loadd(6, w, panel_bytes_a_row);
    _tile_loadd(7, w + 16, panel_bytes_a_row);
    _tile_loadd(5, x + below, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, panel_bytes_a_row);
  _tile_stored(1, sums + 16, panel_bytes_a_row);
  _tile_stored(2, lower, panel_bytes_a_row);
  _tile_stored(3, lower + 16, panel_bytes_a_row);
}

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
#endif
