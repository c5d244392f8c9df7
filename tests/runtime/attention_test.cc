// Norm, RoPE, the ring and attention against float64 twins, and the same bits for a row however its tokens are cut into runs,
// wherever they lie in the ring and whatever lies beside them.
#include "tests/runtime/device_testing.h"

#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace kvmesh {
namespace {

struct Setting {
  std::int64_t heads, kv_heads, head_dim, size;
  DType dtype;
  std::int64_t window = -1;
  bool rope = true;

  std::int64_t width() const { return (heads + 2 * kv_heads) * head_dim; }
};

constexpr float eps = 1e-5f;

Tensor rope_table(const Setting& s) {
  const Tensor t = host_tensor(DType::f32, {s.size, s.head_dim});
  const std::int64_t half = s.head_dim / 2;
  for (std::int64_t p = 0; p < s.size; ++p) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) / std::pow(10000.0, 2.0 * static_cast<double>(i) / static_cast<double>(s.head_dim));
      set(t, p * s.head_dim + i, std::cos(angle));
      set(t, p * s.head_dim + half + i, std::sin(angle));
    }
  }
  return t;
}

LayerCache new_cache(Device& device, const Setting& s, std::int64_t places) {
  // Not-a-numbers show any key that is read without having been written.
  const Shape shape{places, s.kv_heads, s.size, s.head_dim};
  return {up(device, filled(s.dtype, shape, NAN)), up(device, filled(s.dtype, shape, NAN))};
}

/// Runs the tokens of one row, qkv [T, width], as segments of the given lengths, one call each; returns [T, H·h].
Tensor in_runs(Device& device, const Setting& s, const Tensor& qkv, const LayerCache& cache, std::int32_t place, std::int64_t start,
               const std::vector<std::int32_t>& runs) {
  const Tensor out = device.empty(s.dtype, {qkv.size(0), s.heads * s.head_dim}), there = up(device, qkv);
  const Tensor rope = s.rope ? up(device, rope_table(s)) : Tensor();
  std::int64_t done = 0;
  for (const std::int32_t count : runs) {
    const Tensor q = device.empty(s.dtype, {count, s.heads * s.head_dim});
    const std::vector<Segment> segments = {{.start = start, .begin = start + done, .place = place, .count = count, .offset = 0}};
    const Pass pass = device.prepare({}, segments, {});
    device.norm_rope_append(there.slice(done, done + count), pass, rope, {eps}, q, cache);
    device.attention(q, pass, cache, s.window, out.slice(done, done + count));
    done += count;
  }
  EXPECT_EQ(done, qkv.size(0));
  return down(device, out);
}

std::vector<std::int32_t> runs_of(std::int64_t tokens, std::int32_t length) {
  std::vector<std::int32_t> runs;
  for (; tokens > 0; tokens -= length) runs.push_back(static_cast<std::int32_t>(std::min<std::int64_t>(tokens, length)));
  return runs;
}

double rounded(DType dtype, double x) { return dtype == DType::bf16 ? bfloat16(static_cast<float>(x)) : x; }

/// Head `head` of token t after norm and, for queries and keys, RoPE: what is stored.
std::vector<double> twin_head(const Setting& s, const Tensor& qkv, std::int64_t t, std::int64_t head) {
  const std::int64_t h = s.head_dim, half = h / 2;
  std::vector<double> x(static_cast<std::size_t>(h));
  double squares = 0;
  for (std::int64_t i = 0; i < h; ++i) {
    x[i] = get(qkv, t * s.width() + head * h + i);
    squares += x[i] * x[i];
  }
  if (head >= s.heads + s.kv_heads) return x;
  for (double& v : x) v /= std::sqrt(squares / static_cast<double>(h) + eps);
  for (std::int64_t i = 0; s.rope && i < half; ++i) {
    const double angle = static_cast<double>(t) / std::pow(10000.0, 2.0 * static_cast<double>(i) / static_cast<double>(h));
    const double a = x[i], b = x[i + half];
    x[i] = a * std::cos(angle) - b * std::sin(angle);
    x[i + half] = b * std::cos(angle) + a * std::sin(angle);
  }
  for (double& v : x) v = rounded(s.dtype, v);
  return x;
}

/// The whole row by plain sums in double: [T][H·h].
std::vector<std::vector<double>> twin(const Setting& s, const Tensor& qkv) {
  const std::int64_t tokens = qkv.size(0), h = s.head_dim;
  std::vector<std::vector<std::vector<double>>> x(static_cast<std::size_t>(tokens));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < s.heads + 2 * s.kv_heads; ++i) x[t].push_back(twin_head(s, qkv, t, i));
  }
  std::vector<std::vector<double>> out(static_cast<std::size_t>(tokens), std::vector<double>(static_cast<std::size_t>(s.heads * h)));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < s.heads; ++i) {
      const std::int64_t kv = i / (s.heads / s.kv_heads);
      double sum = 0;
      for (std::int64_t j = s.window >= 0 ? std::max<std::int64_t>(0, t - s.window) : 0; j <= t; ++j) {
        double score = 0;
        for (std::int64_t d = 0; d < h; ++d) score += x[t][i][d] * x[j][s.heads + kv][d];
        const double weight = std::exp(score / std::sqrt(static_cast<double>(h)));
        sum += weight;
        for (std::int64_t d = 0; d < h; ++d) out[t][i * h + d] += weight * x[j][s.heads + s.kv_heads + kv][d];
      }
      for (std::int64_t d = 0; d < h; ++d) out[t][i * h + d] /= sum;
    }
  }
  return out;
}

/// A row that begins at `start`, in runs of `length`, against the twin.
void expect_twin(Device& device, const Setting& s, std::int64_t start, std::int32_t length) {
  const std::int64_t tokens = s.size - 3;
  const Tensor qkv = random_tensor(s.dtype, {tokens, s.width()}, 21);
  const Tensor out = in_runs(device, s, qkv, new_cache(device, s, 2), 1, start, runs_of(tokens, length));
  const auto want = twin(s, qkv);
  // A stored query or key may round the other way than the twin's: bfloat16 then moves a weight by some 2⁻⁸.
  const double margin = s.dtype == DType::bf16 ? 0.02 : 1e-5;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = 0; i < s.heads * s.head_dim; ++i) {
      ASSERT_NEAR(get(out, t * s.heads * s.head_dim + i), want[t][i], margin * (1 + std::abs(want[t][i])))
          << name_of(s.dtype) << ", head_dim " << s.head_dim << ", window " << s.window << ", start " << start << ", token " << t << ", element " << i;
    }
  }
}

TEST(Attention, AgreesWithFloat64) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    for (const Setting& s : {Setting{2, 1, 2, 40, dtype}, {4, 2, 8, 40, dtype}, {3, 3, 10, 90, dtype, 7}, {8, 4, 32, 200, dtype, 64},
                             {8, 4, 96, 150, dtype, -1, false}, {4, 1, 128, 140, dtype, 0}, {2, 2, 256, 70, dtype}, {14, 1, 34, 80, dtype, 1000}}) {
      expect_twin(*device, s, 5 * s.size - 30, 33);
    }
  }
}

// Rows that lie whole, rows that wrap and so are left to our own attention, shapes that cuDNN does not do; and not-a-numbers wherever no key is.
TEST(Attention, ByCudnnAgreesWithFloat64) {
  const auto device = cudnn_device();
  if (!device) GTEST_SKIP() << "cuDNN is for GPUs";
  EXPECT_NE(device->kind().find("/cudnn-"), std::string::npos) << "its outputs are another kind";
  for (const Setting& s : {Setting{8, 4, 64, 90, DType::bf16}, {4, 1, 96, 90, DType::bf16, 7}, {2, 2, 128, 90, DType::bf16, 30}, {4, 2, 10, 40, DType::bf16}, {4, 2, 8, 40, DType::f32}}) {
    for (const std::int64_t start : {2 * s.size, 2 * s.size + 3, 3 * s.size - 30}) {
      for (const std::int32_t length : {1, 33}) expect_twin(*device, s, start, length);
    }
  }
}

TEST(Attention, CachedKeysAreTheTwins) {
  const auto device = test_device();
  for (const DType dtype : float_types()) {
    const Setting s{4, 2, 10, 16, dtype};
    const Tensor qkv = random_tensor(dtype, {5, s.width()}, 22);
    const LayerCache there = new_cache(*device, s, 3);
    in_runs(*device, s, qkv, there, 2, 30, {5});  // slots 14, 15, 0, 1, 2
    const LayerCache cache{down(*device, there.k), down(*device, there.v)};
    for (std::int64_t place = 0; place < 3; ++place) {
      for (std::int64_t head = 0; head < 2; ++head) {
        for (std::int64_t slot = 0; slot < 16; ++slot) {
          const std::int64_t t = (slot + 2) % 16, at = ((place * 2 + head) * 16 + slot) * 10;
          for (std::int64_t i = 0; i < 10; ++i) {
            if (place != 2 || t >= 5) {
              ASSERT_TRUE(std::isnan(get(cache.k, at + i)) && std::isnan(get(cache.v, at + i))) << "place " << place << ", slot " << slot;
            } else {
              const double k = twin_head(s, qkv, t, 4 + head)[i];
              ASSERT_NEAR(get(cache.k, at + i), k, tolerance(dtype) * (std::abs(k) + 1e-3)) << "slot " << slot;
              ASSERT_EQ(get(cache.v, at + i), twin_head(s, qkv, t, 6 + head)[i]) << "slot " << slot;
            }
          }
        }
      }
    }
  }
}

TEST(Attention, ARowsBitsDoNotDependOnRunsRingOrThreads) {
  for (const DType dtype : float_types()) {
    const std::vector<Setting> settings = {{8, 4, 96, 300, dtype}, {4, 1, 10, 300, dtype, 70}, {7, 1, 2, 200, dtype, 20, false}};
    const std::vector<Setting> few = {{2, 1, 40, 270, dtype}, {17, 1, 10, 280, dtype, 70}};
    const std::vector<std::int32_t> lengths = emulated() ? std::vector<std::int32_t>{1, 65} : std::vector<std::int32_t>{1, 2, 7, 63, 64, 65, 131};
    for (const Setting& s : emulated() ? few : settings) {
      const std::int64_t tokens = s.size;
      const Tensor qkv = random_tensor(dtype, {tokens, s.width()}, 23);
      const auto one = test_device(1);
      const Tensor whole = in_runs(*one, s, qkv, new_cache(*one, s, 1), 0, s.size, runs_of(tokens, static_cast<std::int32_t>(tokens)));
      const std::vector<std::int64_t> starts = {3 * s.size - 64, s.size, 2 * s.size - 1, 2 * s.size + 1, std::int64_t{1} << 33};
      for (const std::int32_t length : lengths) {
        for (const std::int64_t start : std::span(starts).first(emulated() ? 1 : starts.size())) {
          const auto device = test_device(1 + length % 4);
          const Tensor out = in_runs(*device, s, qkv, new_cache(*device, s, 3), 1, start, runs_of(tokens, length));
          ASSERT_TRUE(same_rows(out, 0, whole, 0, tokens)) << name_of(dtype) << ", head_dim " << s.head_dim << ", runs of " << length << ", start " << start;
        }
      }
    }
  }
}

/// Not-a-numbers that end where memory ends: a read beyond them is a fault.
Tensor at_a_guard(DType dtype, Shape shape) {
  const Tensor values = filled(dtype, shape, NAN);
  const std::size_t page = 4096, bytes = values.bytes(), pages = (bytes + page - 1) / page * page;
  auto* const memory = static_cast<std::byte*>(mmap(nullptr, pages + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  check(memory != MAP_FAILED && mprotect(memory + pages, page, PROT_NONE) == 0, "no memory with a guard");
  std::memcpy(memory + pages - bytes, values.raw(), bytes);
  return {std::shared_ptr<void>(memory, [=](void* p) { munmap(p, pages + page); }), memory + pages - bytes, dtype, shape};
}

TEST(Attention, SmallRingsAreReadUpToTheirEnd) {
  if (on_cuda()) GTEST_SKIP() << "the memory is the host's";
  const auto device = test_device(1);
  for (const DType dtype : float_types()) {
    for (const std::int64_t size : {1, 5, 15, 16, 17, 40, 63, 64, 65, 100}) {
      for (const Setting& s : {Setting{6, 2, 96, size, dtype}, {4, 2, 32, size, dtype, 9}, {2, 1, 10, size, dtype}}) {
        const Tensor qkv = random_tensor(dtype, {size, s.width()}, 25);
        const Tensor whole = in_runs(*device, s, qkv, new_cache(*device, s, 1), 0, 4 * size, {static_cast<std::int32_t>(size)});
        for (const std::int64_t start : {4 * size, 5 * size - 1, 4 * size + size / 2}) {
          const Shape shape{2, s.kv_heads, size, s.head_dim};
          const Tensor out = in_runs(*device, s, qkv, {at_a_guard(dtype, shape), at_a_guard(dtype, shape)}, 1, start, runs_of(size, 1));
          ASSERT_TRUE(same_rows(out, 0, whole, 0, size)) << name_of(dtype) << ", head_dim " << s.head_dim << ", size " << size << ", start " << start;
        }
      }
    }
  }
}

TEST(Attention, WhatATokenDoesNotSeeCannotHarmIt) {
  const auto device = test_device(1);
  for (const DType dtype : float_types()) {
    for (const Setting& s : {Setting{8, 4, 96, 90, dtype}, {4, 2, 20, 90, dtype, 12}, {6, 2, 24, 90, dtype, 5}}) {
      const Tensor qkv = random_tensor(dtype, {80, s.width()}, 26);
      for (const double broken : {static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
        for (std::int64_t i = 0; i < s.kv_heads * s.head_dim; i += 7) set(qkv, 40 * s.width() + (s.heads + s.kv_heads) * s.head_dim + i, broken);  // token 40's values
        const Tensor before = in_runs(*device, s, qkv.slice(0, 40), new_cache(*device, s, 1), 0, s.size, {40});
        const Tensor whole = in_runs(*device, s, qkv, new_cache(*device, s, 1), 0, s.size, {80}), single = in_runs(*device, s, qkv, new_cache(*device, s, 1), 0, s.size, runs_of(80, 1));
        EXPECT_TRUE(same_rows(whole, 0, before, 0, 40)) << name_of(dtype) << ", head_dim " << s.head_dim;
        EXPECT_TRUE(same_rows(single, 0, before, 0, 40)) << name_of(dtype) << ", head_dim " << s.head_dim;
        for (std::int64_t t = 53; s.window >= 0 && t < 80; ++t) EXPECT_TRUE(std::isfinite(get(whole, t * s.heads * s.head_dim))) << t;  // out of the window again
      }
    }
  }
}

TEST(Attention, ManySegmentsInOnePassAreStrangers) {
  for (const DType dtype : float_types()) {
    const Setting s{8, 2, 32, 100, dtype, 50};
    const auto device = test_device(3);
    const Tensor rope = up(*device, rope_table(s));
    const std::vector<std::int32_t> counts = {1, 40, 1, 99, 100, 3};
    const std::int64_t width = s.heads * s.head_dim, end = 250;
    std::int32_t total = 0;
    for (const std::int32_t c : counts) total += c;
    const Tensor qkv = random_tensor(dtype, {total, s.width()}, 24);
    const Tensor q = device->empty(dtype, {total, width}), there = device->empty(dtype, {total, width});
    const LayerCache cache = new_cache(*device, s, 6);
    std::vector<Segment> segments;
    std::int32_t offset = 0;
    for (std::size_t i = 0; i < counts.size(); offset += counts[i++]) {
      segments.push_back({.start = end - counts[i], .begin = end - counts[i], .place = static_cast<std::int32_t>(5 - i), .count = counts[i], .offset = offset});
    }
    const Pass pass = device->prepare({}, segments, {});
    device->norm_rope_append(up(*device, qkv), pass, rope, {eps}, q, cache);
    device->attention(q, pass, cache, s.window, there);
    const Tensor out = down(*device, there);
    for (const Segment& g : segments) {
      const Tensor alone = in_runs(*device, s, qkv.slice(g.offset, g.offset + g.count), new_cache(*device, s, 1), 0, 7, {g.count});
      EXPECT_TRUE(same_rows(out, g.offset, alone, 0, g.count)) << "segment of " << g.count;
    }
  }
}

TEST(Attention, ExtremeScoresStayFinite) {
  const auto device = test_device();
  // Unnormed queries straight into attention: weights that underflow, and a maximum that comes last.
  const LayerCache cache{host_tensor(DType::f32, {1, 1, 200, 2}), host_tensor(DType::f32, {1, 1, 200, 2})};
  for (int j = 0; j < 200; ++j) {
    for (int i = 0; i < 2; ++i) {
      set(cache.k, j * 2 + i, j - 100.0);
      set(cache.v, j * 2 + i, j);
    }
  }
  const LayerCache there{up(*device, cache.k), up(*device, cache.v)};
  const std::vector<Segment> segments = {{.start = 200, .begin = 399, .place = 0, .count = 1, .offset = 0}};
  const Pass pass = device->prepare({}, segments, {});
  const auto attended = [&](double query) {
    const Tensor out = device->empty(DType::f32, {1, 2});
    device->attention(up(*device, filled(DType::f32, {1, 2}, query)), pass, there, -1, out);
    return down(*device, out);
  };
  EXPECT_EQ(get(attended(50), 0), 199);  // e^-70 below the last
  EXPECT_NEAR(get(attended(-50), 1), 0, 1e-30);
}

TEST(Attention, CopyRowsWrapsOnBothSides) {
  const auto device = test_device(2);
  for (const DType dtype : float_types()) {
    const Shape shape{3, 2, 10, 4};
    for (const std::int64_t count : {0, 1, 7, 10}) {
      const LayerCache before{random_tensor(dtype, shape, 30), random_tensor(dtype, shape, 31)};
      const LayerCache there{up(*device, before.k), up(*device, before.v)};
      device->copy_rows(there, 0, 26, 2, 13, count);
      const LayerCache cache{down(*device, there.k), down(*device, there.v)};
      for (std::int64_t place = 0; place < 3; ++place) {
        for (std::int64_t head = 0; head < 2; ++head) {
          for (std::int64_t slot = 0; slot < 10; ++slot) {
            const std::int64_t i = (slot + 10 - 3) % 10;  // the i-th copied position lies at slot (13 + i) mod 10
            const bool copied = place == 2 && i < count;
            const std::int64_t from = copied ? (head * 10 + (26 + i) % 10) * 4 : ((place * 2 + head) * 10 + slot) * 4;
            for (std::int64_t d = 0; d < 4; ++d) {
              ASSERT_EQ(get(cache.k, ((place * 2 + head) * 10 + slot) * 4 + d), get(before.k, from + d));
              ASSERT_EQ(get(cache.v, ((place * 2 + head) * 10 + slot) * 4 + d), get(before.v, from + d));
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace kvmesh
