// Attention, backwards: blocks of queries meet blocks of keys, scores are computed again, and every product goes through `linear`, so that
// the fastest way to multiply serves here too. After FlashAttention-2 (Dao, arXiv 2307.08691); sums over keys and queries go in one fixed order.
#include "runtime/cpu/kernels/math.h"
#include "runtime/cpu/kernels/train_kernels.h"

#include <initializer_list>

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

/// Tokens of a block, of queries and of keys: the last one is filled up with zeros.
constexpr std::int64_t block_of(std::int64_t tokens) { return tokens < 128 ? round_up(tokens, 32) : 128; }

/// Memory that is handed out from the front, 64-byte aligned; from a null start it only counts.
struct Arena {
  char* begin;
  std::size_t used = 0;
  template <typename T = char>
  T* take(std::int64_t bytes) {
    char* const at = begin ? begin + used : nullptr;
    used += static_cast<std::size_t>(round_up(bytes, 64));
    return reinterpret_cast<T*>(at);
  }
};

struct Buffers {
  std::int64_t size, block, blocks, h;  // bytes of an element; tokens of a block; blocks; head_dim
  std::int64_t packed_scores, packed_heads;  // bytes of a packed [h, block] and [block, h]
  char *kt, *vt, *k;                     // [blocks] packed: keys and values turned, [h, block]; keys [block, h]
  char *q, *dout, *packed_q, *packed_dout, *turned;  // [block, h]
  char *weights, *dscores, *turned_weights, *turned_dscores;  // [block, block]
  float *scores, *dweights;              // [blocks][block, block]; [block, block]
  float *dq, *dk, *dv;                   // [block, h]; [blocks · block, h]
  float *inverse, *delta;                // [block]
  char* linear;

  Buffers(Arena& arena, std::int64_t head_dim, std::int64_t tokens, bool bf16)
      : size(bf16 ? 2 : 4), block(block_of(tokens)), blocks((tokens + block - 1) / block), h(head_dim),
        packed_scores(panel_bytes({bf16}, h) * ((block + kernels.panel - 1) / kernels.panel)),
        packed_heads(panel_bytes({bf16}, block) * ((h + kernels.panel - 1) / kernels.panel)) {
    for (char** p : {&kt, &vt}) *p = arena.take(blocks * packed_scores);
    k = arena.take(blocks * packed_heads);
    for (char** p : {&q, &dout, &turned}) *p = arena.take(block * h * size);
    for (char** p : {&packed_q, &packed_dout}) *p = arena.take(packed_heads);
    for (char** p : {&weights, &dscores, &turned_weights, &turned_dscores}) *p = arena.take(block * block * size);
    scores = arena.take<float>(blocks * block * block * 4);
    dweights = arena.take<float>(block * block * 4);
    dq = arena.take<float>(block * h * 4);
    for (float** p : {&dk, &dv}) *p = arena.take<float>(blocks * block * h * 4);
    for (float** p : {&inverse, &delta}) *p = arena.take<float>(block * 4);
    const std::size_t by_heads = linear_scratch({bf16}, h, block), by_keys = linear_scratch({bf16}, block, block);
    linear = arena.take(static_cast<std::int64_t>(by_heads > by_keys ? by_heads : by_keys));
  }
};

struct Backward {
  const AttentionBackwardTask& t;
  Buffers b;

  void pack_rows(const char* rows, std::int64_t k, std::int64_t n, char* target) const {
    pack(rows, t.bf16, {t.bf16}, k, n, 0, (n + kernels.panel - 1) / kernels.panel, target);
  }
  void multiply(const char* x, std::int64_t rows, const char* w, std::int64_t k, std::int64_t n, float* out, bool more) const {
    const LinearTask task{.x = x, .w = w, .out = out, .k = k, .n = n, .stride = n, .bf16 = t.bf16, .out_bf16 = false, .epilogue = more ? Epilogue::add : Epilogue::none};
    KVMESH_ISA::linear(task, 0, rows, 0, (n + kernels.panel - 1) / kernels.panel, b.linear);
  }
  /// Rows [first, first + count) of x, `stride` elements apart, to [block, h]; zeros behind them.
  void gather(const void* x, std::int64_t stride, std::int64_t first, std::int64_t count, char* to) const {
    const std::int64_t bytes = b.h * b.size;
    for (std::int64_t i = 0; i < count; ++i) __builtin_memcpy(to + i * bytes, static_cast<const char*>(x) + (first + i) * stride * b.size, static_cast<std::size_t>(bytes));
    __builtin_memset(to + count * bytes, 0, static_cast<std::size_t>((b.block - count) * bytes));
  }
  std::int64_t count_of(std::int64_t block) const { return t.tokens - block * b.block < b.block ? t.tokens - block * b.block : b.block; }

  void pack_keys() const {
    for (std::int64_t c = 0; c < b.blocks; ++c) {
      gather(t.v, b.h, c * b.block, count_of(c), b.q);
      transpose_rows(b.q, t.bf16, b.h, 0, b.block, b.turned, t.bf16, b.block);
      pack_rows(b.turned, b.h, b.block, b.vt + c * b.packed_scores);
      gather(t.k, b.h, c * b.block, count_of(c), b.q);
      transpose_rows(b.q, t.bf16, b.h, 0, b.block, b.turned, t.bf16, b.block);
      pack_rows(b.turned, b.h, b.block, b.kt + c * b.packed_scores);
      pack_rows(b.q, b.block, b.h, b.k + c * b.packed_heads);
    }
  }

  /// Whether the token at `position` sees keys first + 0 … lanes - 1; as a mask of lanes.
  KVMESH_INLINE Ints seen(std::int64_t position, std::int64_t first) const {
    const auto last = static_cast<std::int32_t>(position - first);
    const Ints i = iota();
    return t.window < 0 ? (i <= last) : (i <= last) & (i >= static_cast<std::int32_t>(position - t.window - first));
  }

  /// Scores of blocks [from, to] of keys become exp(scaled score - the row's maximum); inverse: of their sum.
  void soften(std::int64_t first_query, std::int64_t queries, std::int64_t from, std::int64_t to, float scale) const {
    const std::int64_t square = b.block * b.block;
    for (std::int64_t i = 0; i < queries; ++i) {
      const Floats least = splat(-__builtin_inff());
      Floats most = least;
      const auto each = [&](const auto& f) {
        for (std::int64_t c = from; c <= to; ++c) {
          for (std::int64_t j = 0; j < b.block; j += lanes) f(b.scores + c * square + i * b.block + j, c * b.block + j);
        }
      };
      each([&](float* at, std::int64_t key) {
        const Floats s = seen(first_query + i, key) ? scale * load<Floats>(at) : least;
        store(at, s);
        most = max(most, s);
      });
      const Floats m = splat(max_lanes(most));
      Floats sum = {};
      each([&](float* at, std::int64_t) {
        const Floats e = exp(load<Floats>(at) - m);
        store(at, e);
        sum = sum + e;
      });
      b.inverse[i] = 1.0f / sum_lanes(sum);
    }
  }

  /// weights and the scores' gradients of one block of keys, rounded to the elements' type; zeros where there is no query.
  void gradients(std::int64_t queries, std::int64_t c, float scale) const {
    const float* const e = b.scores + c * b.block * b.block;
    const auto write = [&](char* to, std::int64_t i, Floats x) {
      if (t.bf16) store(reinterpret_cast<std::uint16_t*>(to) + i, narrow(x));
      else store(reinterpret_cast<float*>(to) + i, x);
    };
    for (std::int64_t i = 0; i < b.block; ++i) {
      for (std::int64_t j = 0; j < b.block; j += lanes) {
        const std::int64_t at = i * b.block + j;
        Floats p = {}, d = {};
        if (i < queries) {
          p = b.inverse[i] * load<Floats>(e + at);
          d = scale * (p * (load<Floats>(b.dweights + at) - b.delta[i]));
        }
        write(b.weights, at, p);
        write(b.dscores, at, d);
      }
    }
    transpose_rows(b.weights, t.bf16, b.block, 0, b.block, b.turned_weights, t.bf16, b.block);
    transpose_rows(b.dscores, t.bf16, b.block, 0, b.block, b.turned_dscores, t.bf16, b.block);
  }

  /// Block `qb` of the queries of one head.
  void queries(std::int64_t head, std::int64_t qb, float scale) const {
    const std::int64_t first = qb * b.block, count = count_of(qb);
    const auto of_head = [&](const void* x) { return static_cast<const char*>(x) + head * b.h * b.size; };
    gather(of_head(t.out), t.stride, first, count, b.q);
    gather(of_head(t.dout), t.stride, first, count, b.dout);
    for (std::int64_t i = 0; i < count; ++i) {
      float o[1024], d[1024];
      float sum = 0;
      for (std::int64_t begin = 0; begin < b.h; begin += 1024) {
        const std::int64_t n = b.h - begin < 1024 ? b.h - begin : 1024;
        read_floats(b.q, t.bf16, i * b.h + begin, n, o);
        read_floats(b.dout, t.bf16, i * b.h + begin, n, d);
        for (std::int64_t j = 0; j < n; ++j) sum += o[j] * d[j];
      }
      b.delta[i] = sum;
    }
    gather(of_head(t.q), t.stride, first, count, b.q);
    pack_rows(b.q, b.block, b.h, b.packed_q);
    pack_rows(b.dout, b.block, b.h, b.packed_dout);
    const std::int64_t from = t.window < 0 || first < t.window ? 0 : (first - t.window) / b.block;
    for (std::int64_t c = from; c <= qb; ++c) {
      multiply(b.q, count, b.kt + c * b.packed_scores, b.h, b.block, b.scores + c * b.block * b.block, false);
    }
    soften(first, count, from, qb, scale);
    for (std::int64_t c = from; c <= qb; ++c) {
      multiply(b.dout, count, b.vt + c * b.packed_scores, b.h, b.block, b.dweights, false);
      gradients(count, c, scale);
      const std::int64_t keys = count_of(c);
      multiply(b.turned_weights, keys, b.packed_dout, b.block, b.h, b.dv + c * b.block * b.h, true);
      multiply(b.turned_dscores, keys, b.packed_q, b.block, b.h, b.dk + c * b.block * b.h, true);
      multiply(b.dscores, count, b.k + c * b.packed_heads, b.block, b.h, b.dq, c > from);
    }
    for (std::int64_t i = 0; i < count; ++i) write_floats(b.dq + i * b.h, b.h, t.dq, t.bf16, (first + i) * t.stride + head * b.h);
  }
};

}  // namespace

std::size_t attention_backward_scratch(std::int64_t head_dim, std::int64_t tokens, bool bf16) {
  Arena arena{nullptr};
  Buffers(arena, head_dim, tokens, bf16);
  return arena.used;
}

void attention_backward(const AttentionBackwardTask& t, void* scratch) {
  Arena arena{static_cast<char*>(scratch)};
  const Backward work{t, Buffers(arena, t.head_dim, t.tokens, t.bf16)};
  const Buffers& b = work.b;
  const float scale = 1.0f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(static_cast<float>(t.head_dim))));
  for (float* sums : {b.dk, b.dv}) __builtin_memset(sums, 0, static_cast<std::size_t>(b.blocks * b.block * b.h * 4));
  work.pack_keys();
  for (std::int64_t head = 0; head < t.group; ++head) {
    for (std::int64_t block = 0; block < b.blocks; ++block) work.queries(head, block, scale);
  }
  for (std::int64_t i = 0; i < t.tokens; ++i) {
    write_floats(b.dk + i * b.h, b.h, t.dk, t.bf16, i * t.kv_stride);
    write_floats(b.dv + i * b.h, b.h, t.dv, t.bf16, i * t.kv_stride);
  }
}

}  // namespace kvmesh::cpu::KVMESH_ISA
