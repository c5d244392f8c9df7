// The sampler's loops, in blocks of 64 entries (a last one padded with -inf) that the compiler turns into vectors. Only additions
// of whole numbers and comparisons cross lanes, so the results do not depend on the vectors' width.
#include "runtime/cpu/kernels/sample.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

constexpr float inf = __builtin_inff();
constexpr float largest_float = 0x1.fffffep127f;
constexpr std::int64_t step = 64;
constexpr int lanes = 16;
using Floats = float __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));

KVMESH_HD float clean(float x) {
  const float y = x < largest_float ? x : largest_float;  // a NaN becomes the largest float here and is replaced below
  return x >= -inf ? y : -inf;
}

// The block at x as floats that may be read 64 at a time: x itself, or a padded copy of the last n in `room`.
KVMESH_HD const float* whole_block(const float* x, std::int64_t n, float* room) {
  if (n >= step) return x;
  for (std::int64_t j = 0; j < step; ++j) room[j] = j < n ? x[j] : -inf;
  return room;
}

// Lane-wise maxima of 64 cleaned entries into m.
KVMESH_HD void raise(const float* x, Floats& m) {
  for (int part = 0; part < step / lanes; ++part) {
    Floats v;
    __builtin_memcpy(&v, x + part * lanes, sizeof v);
    m = v > m ? v : m;  // a NaN is never greater
  }
}

KVMESH_HD float across(const Floats& m) {
  float best = -inf;
  for (int j = 0; j < lanes; ++j) best = m[j] > best ? m[j] : best;
  return best < largest_float ? best : largest_float;
}

Best largest(const float* x, std::int64_t n) {
  float room[step];
  Floats m = Floats{} - inf;
  for (std::int64_t i = 0; i < n; i += step) raise(whole_block(x + i, n - i, room), m);
  const float best = across(m);
  if (best == -inf) return {-inf, 0};
  for (std::int64_t i = 0; i < n; i += step) {
    const float* b = whole_block(x + i, n - i, room);
    std::int32_t hit = 0;
    for (int j = 0; j < step; ++j) hit |= b[j] >= best ? 1 : 0;
    if (!hit) continue;
    for (int j = 0; j < step; ++j) {
      if (b[j] >= best) return {best, static_cast<std::int32_t>(i + j)};
    }
  }
  return {-inf, 0};
}

void block_maxima(const float* x, std::int64_t n, float* out) {
  for (std::int64_t i = 0; i < n; i += sample_block) {
    const std::int64_t count = n - i < sample_block ? n - i : sample_block;
    if (count == sample_block) {
      Floats a, b, m = Floats{} - inf;
      __builtin_memcpy(&a, x + i, sizeof a);
      __builtin_memcpy(&b, x + i + lanes, sizeof b);
      m = a > m ? a : m;
      m = b > m ? b : m;
      out[i / sample_block] = across(m);
    } else {
      float best = -inf;
      for (std::int64_t j = 0; j < count; ++j) best = clean(x[i + j]) > best ? clean(x[i + j]) : best;
      out[i / sample_block] = best;
    }
  }
}

std::int64_t at_least(const float* x, std::int64_t n, float threshold, float* values, std::int32_t* ids) {
  std::int64_t found = 0;
  float room[step];
  for (std::int64_t i = 0; i < n; i += step) {
    const float* b = whole_block(x + i, n - i, room);
    std::int32_t hits = 0;
    for (int j = 0; j < step; ++j) hits += clean(b[j]) >= threshold ? 1 : 0;
    if (!hits) continue;
    const int count = static_cast<int>(n - i < step ? n - i : step);
    for (int j = 0; j < count; ++j) {
      const float v = clean(b[j]);
      if (!(v >= threshold)) continue;
      values[found] = v;
      ids[found++] = static_cast<std::int32_t>(i + j);
    }
  }
  return found;
}

std::uint64_t weigh(const float* x, std::int64_t n, float temperature, float top, float* scaled, float* weights) {
  std::uint64_t sum = 0;
  float room[step], s[step], w[step];
  for (std::int64_t i = 0; i < n; i += step) {
    const float* b = whole_block(x + i, n - i, room);
    for (int j = 0; j < step; ++j) {
      s[j] = clean(b[j]) / temperature;
      w[j] = exp_f32(s[j] - top);
    }
    for (int j = 0; j < step; ++j) sum += fixed_point(w[j]);
    const std::size_t bytes = static_cast<std::size_t>(n - i < step ? n - i : step) * sizeof(float);
    if (scaled) __builtin_memcpy(scaled + i, s, bytes);
    if (weights) __builtin_memcpy(weights + i, w, bytes);
  }
  return sum;
}

Best draw(const float* x, const std::int32_t* ids, std::int64_t n, std::int32_t first_id, float temperature, NoiseKey key,
          std::uint64_t first_count, float floor) {
  const auto base_hi = static_cast<std::uint32_t>(first_count >> 32), base_lo = static_cast<std::uint32_t>(first_count);
  Floats best = Floats{} - inf;
  Ints best_id = Ints{} + (ids ? ids[0] : first_id);
  float room[step], s[step], v[step];
  std::int32_t id[step], bits[step];
  for (std::int64_t i = 0; i < n; i += step) {
    const float* b = whole_block(x + i, n - i, room);
    Floats m = Floats{} - inf;
    for (int j = 0; j < step; ++j) s[j] = clean(b[j]) / temperature;
    raise(s, m);
    const float top = across(m);
    if (top + gumbel_bound < floor) continue;
    for (int j = 0; j < step; ++j) id[j] = ids ? ids[i + j < n ? i + j : n - 1] : static_cast<std::int32_t>(first_id + i + j);
    for (int j = 0; j < step; ++j) {
      const std::uint32_t lo = base_lo + static_cast<std::uint32_t>(id[j]), hi = base_hi + (lo < base_lo ? 1u : 0u);
      const NoiseKey y = threefry2x32(key, hi, lo);
      bits[j] = static_cast<std::int32_t>((y.hi ^ y.lo) >> 1);  // of which the noise takes the upper 23
    }
    // Logarithms only where the block's largest logit with its largest noise could win; a margin for their rounding.
    std::int32_t most = 0;
    for (int j = 0; j < step; ++j) most = bits[j] > most ? bits[j] : most;
    if (top + gumbel_from_bits(static_cast<std::uint32_t>(most) << 1) + 0x1p-16f < floor) continue;
    for (int j = 0; j < step; ++j) v[j] = s[j] + gumbel_from_bits(static_cast<std::uint32_t>(bits[j]) << 1);
    for (int part = 0; part < step / lanes; ++part) {
      Floats value;
      Ints index;
      __builtin_memcpy(&value, v + part * lanes, sizeof value);
      __builtin_memcpy(&index, id + part * lanes, sizeof index);
      best_id = value > best ? index : best_id;
      best = value > best ? value : best;
    }
    const float so_far = across(best);
    floor = so_far > floor ? so_far : floor;
  }
  Best result{best[0], best_id[0]};
  for (int j = 1; j < lanes; ++j) {
    if (best[j] > result.value || (best[j] == result.value && best_id[j] < result.id)) result = {best[j], best_id[j]};
  }
  return result;
}

}  // namespace

extern const SampleKernels sample_kernels = {largest, block_maxima, at_least, weigh, draw};

}  // namespace kvmesh::cpu::KVMESH_ISA
