// How training's operations are divided among the threads; the arithmetic is in kernels/.
#include "runtime/cpu/cpu_train.h"

#include "runtime/cpu/isa.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

namespace kvmesh::cpu {
namespace {

constexpr std::int64_t grain = 1 << 14;  // elements that a thread takes at once

const TrainKernels& train_kernels_of(Isa isa) {
  switch (isa) {
    case Isa::amx: return amx::train_kernels;
    case Isa::avx512_bf16: return avx512_bf16::train_kernels;
    case Isa::avx512: return avx512::train_kernels;
    case Isa::avx2: return avx2::train_kernels;
    default: return scalar::train_kernels;
  }
}

std::byte* at(const Tensor& t, std::int64_t element) { return static_cast<std::byte*>(t.raw()) + element * static_cast<std::int64_t>(size_of(t.dtype())); }

bool is_bf16(const Tensor& t) {
  if (t.dtype() != DType::f32 && t.dtype() != DType::bf16) fail(Fault::usage, "{}{} is neither float32 nor bfloat16", name_of(t.dtype()), to_string(t.shape()));
  return t.dtype() == DType::bf16;
}

void check_sizes(std::int64_t size, std::initializer_list<const Tensor*> tensors) {
  for (const Tensor* t : tensors) {
    if (t->numel() != size) fail(Fault::usage, "a tensor{} has not {} elements", to_string(t->shape()), size);
  }
}

}  // namespace

CpuTrainOps::CpuTrainOps(const Kernels& kernels, ThreadPool& pool) : kernels_(kernels), train_(train_kernels_of(isa())), pool_(pool) {}

void CpuTrainOps::each(std::int64_t n, const std::function<void(std::int64_t i)>& body) {
  pool_.parallel_for(n, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) body(i);
  });
}

void CpuTrainOps::pack(const Tensor& source, const Weight& w) {
  check_sizes(w.k * w.n, {&source});
  const std::int64_t panels = (w.n + kernels_.panel - 1) / kernels_.panel;
  pool_.parallel_for(panels, 1, [&](std::int64_t begin, std::int64_t end) {
    kernels_.pack(source.raw(), is_bf16(source), {w.dtype == DType::bf16}, w.k, w.n, begin, end, w.data.raw());
  });
}

void CpuTrainOps::transpose(const Tensor& x, const Tensor& out) {
  const std::int64_t rows = x.size(0), columns = x.numel() / std::max<std::int64_t>(rows, 1);
  check_sizes(x.numel(), {&out});
  const std::int64_t block = 64;  // rows: whole cache lines of out
  pool_.parallel_for((rows + block - 1) / block, 1, [&](std::int64_t begin, std::int64_t end) {
    train_.transpose(x.raw(), is_bf16(x), columns, begin * block, std::min(end * block, rows), out.raw(), is_bf16(out), rows);
  });
}

void CpuTrainOps::convert(const Tensor& x, const Tensor& out) {
  check_sizes(x.numel(), {&out});
  const bool same = x.dtype() == out.dtype();
  pool_.parallel_for(x.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
    if (same) std::memcpy(at(out, begin), at(x, begin), static_cast<std::size_t>(end - begin) * size_of(x.dtype()));
    else train_.round(x.data<float>() + begin, out.data<bfloat16>() + begin, end - begin);
  });
}

void CpuTrainOps::mirror(const Tensor& columns, std::int64_t from, const Tensor& out) {
  const std::int64_t n = out.size(1), b = columns.size(1), tile = 32;
  check_sizes((from + b) * b, {&columns});
  const float* const in = columns.data<float>();
  float* const to = out.data<float>();
  pool_.parallel_for((from + b + tile - 1) / tile, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin * tile; i < std::min(end * tile, from + b); ++i) std::copy_n(in + i * b, b, to + i * n + from);
    const std::int64_t last = std::min(end * tile, from);  // rows whose mirror image lies below the diagonal's block
    for (std::int64_t j = 0; j < b; ++j) {
      for (std::int64_t i = begin * tile; i < last; ++i) to[(from + j) * n + i] = in[i * b + j];
    }
  });
}

void CpuTrainOps::zero(const Tensor& x) {
  const auto bytes = static_cast<std::int64_t>(x.bytes());
  pool_.parallel_for(bytes, 1 << 20, [&](std::int64_t begin, std::int64_t end) {
    std::memset(static_cast<std::byte*>(x.raw()) + begin, 0, static_cast<std::size_t>(end - begin));
  });
}

void CpuTrainOps::rms_norm_backward(const Tensor& x, const Tensor& dy, float eps, const Tensor& dx, const Tensor& rounded) {
  const std::int64_t d = x.size(1);
  check_sizes(x.numel(), {&dy, &dx});
  pool_.parallel_for(x.size(0), 16, [&](std::int64_t begin, std::int64_t end) {
    void* memory = scratch(2 * kernels_.row_scratch(d));
    for (std::int64_t t = begin; t < end; ++t) {
      train_.rms_norm_backward(at(x, t * d), at(dy, t * d), is_bf16(x), d, eps, dx.data<float>() + t * d, rounded.defined() ? at(rounded, t * d) : nullptr, memory);
    }
  });
}

void CpuTrainOps::norm_rope_backward(const Tensor& qkv, const Tensor& dq, const Tensor& dk, const Tensor& dv, const Pass& pass, const LayerCache& cache,
                                     const Tensor& rope, float eps, const Tensor& dqkv) {
  const std::int64_t h = cache.k.size(3), kv_heads = cache.k.size(1), heads = dq.size(1) / h;
  check_sizes(qkv.numel(), {&dqkv});
  const std::span<const Segment> segments = pass.segments;
  pool_.parallel_for(qkv.size(0), 16, [&](std::int64_t begin, std::int64_t end) {
    void* memory = scratch(2 * kernels_.row_scratch(h));
    auto s = std::upper_bound(segments.begin(), segments.end(), begin, [](std::int64_t t, const Segment& segment) { return t < segment.offset; }) - 1;
    for (std::int64_t t = begin; t < end; ++t) {
      while (t >= s->offset + s->count) ++s;
      const std::int64_t position = s->begin + t - s->offset - s->start;
      const AppendBackwardTask task{.qkv = at(qkv, t * qkv.size(1)),
                                    .dq = at(dq, t * dq.size(1)),
                                    .dk = at(dk, t * dk.size(1)),
                                    .dv = at(dv, t * dv.size(1)),
                                    .dqkv = at(dqkv, t * qkv.size(1)),
                                    .rope = rope.defined() ? rope.data<float>() + position * h : nullptr,
                                    .heads = heads,
                                    .kv_heads = kv_heads,
                                    .head_dim = h,
                                    .eps = eps,
                                    .bf16 = is_bf16(qkv)};
      train_.append_backward(task, memory);
    }
  });
}

void CpuTrainOps::attention_backward(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out, const Tensor& dout,
                                     const Tensor& dq, const Tensor& dk, const Tensor& dv) {
  const std::int64_t kv_heads = cache.k.size(1), size = cache.k.size(2), h = cache.k.size(3), width = q.size(1), group = width / h / kv_heads;
  std::vector<const Segment*> longest;
  for (const Segment& s : pass.segments) {
    check(s.begin == s.start && s.begin % size + s.count <= size, "attention_backward: a segment of {} tokens does not lie in a ring of {} at once", s.count, size);
    longest.push_back(&s);
  }
  std::stable_sort(longest.begin(), longest.end(), [](const Segment* a, const Segment* b) { return a->count > b->count; });
  pool_.parallel_for(std::ssize(longest) * kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const Segment& s = *longest[static_cast<std::size_t>(i / kv_heads)];
      const std::int64_t head = i % kv_heads, row = s.offset * width + head * group * h, kv_row = s.offset * dk.size(1) + head * h;
      const std::int64_t slot = ((s.place * kv_heads + head) * size + s.begin % size) * h;
      const AttentionBackwardTask task{.q = at(q, row),
                                       .out = at(out, row),
                                       .dout = at(dout, row),
                                       .dq = at(dq, row),
                                       .k = at(cache.k, slot),
                                       .v = at(cache.v, slot),
                                       .dk = at(dk, kv_row),
                                       .dv = at(dv, kv_row),
                                       .stride = width,
                                       .kv_stride = dk.size(1),
                                       .head_dim = h,
                                       .group = group,
                                       .tokens = s.count,
                                       .window = window,
                                       .bf16 = is_bf16(q)};
      train_.attention_backward(task, scratch(train_.attention_backward_scratch(h, s.count, task.bf16)));
    }
  });
}

void CpuTrainOps::relu_squared_backward(const Tensor& hidden, const Tensor& dhidden) {
  check_sizes(hidden.numel(), {&dhidden});
  pool_.parallel_for(hidden.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
    train_.relu_squared_backward(at(hidden, begin), at(dhidden, begin), is_bf16(hidden), end - begin);
  });
}

void CpuTrainOps::softmax_sums(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums) {
  const std::int64_t rows = logits.size(0), width = logits.size(1);
  check_sizes(rows, {&targets});
  check_sizes(3 * rows, {&sums});
  pool_.parallel_for(rows, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const float* const row = logits.data<float>() + r * width;
      float* const of_row = sums.data<float>() + 3 * r;
      const std::int64_t target = targets.data<std::int32_t>()[r] - first;
      if (first == 0) of_row[0] = -std::numeric_limits<float>::infinity(), of_row[1] = of_row[2] = 0;
      train_.softmax_sums(row, width, of_row);
      if (target >= 0 && target < width) of_row[2] = row[target];
    }
  });
}

void CpuTrainOps::cross_entropy_backward(const Tensor& logits, const Tensor& targets, std::int64_t first, const Tensor& sums, float cap, float scale, const Tensor& dlogits) {
  const std::int64_t rows = logits.size(0), width = logits.size(1);
  check_sizes(rows, {&targets});
  check_sizes(3 * rows, {&sums});
  check_sizes(logits.numel(), {&dlogits});
  pool_.parallel_for(rows, 8, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::int64_t target = targets.data<std::int32_t>()[r];
      std::byte* const to = at(dlogits, r * width);
      if (target < 0) std::memset(to, 0, static_cast<std::size_t>(width) * size_of(dlogits.dtype()));
      else train_.cross_entropy_backward(logits.data<float>() + r * width, width, target - first, sums.data<float>() + 3 * r, cap, scale, to, is_bf16(dlogits));
    }
  });
}

void CpuTrainOps::scatter_rows(const Tensor& ids, const Tensor& dx, const Tensor& table) {
  const std::int64_t d = table.size(1), part = 64;  // columns; each thread goes through all tokens for its own
  pool_.parallel_for((d + part - 1) / part, 1, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t from = begin * part, count = std::min(end * part, d) - from;
    for (std::int64_t t = 0; t < ids.size(0); ++t) {
      train_.add(table.data<float>() + ids.data<std::int32_t>()[t] * d + from, dx.data<float>() + t * d + from, count);
    }
  });
}

void CpuTrainOps::add_on_host(const Tensor& inout, const Tensor& x) {
  check_sizes(inout.numel(), {&x});
  pool_.parallel_for(x.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
    train_.add(inout.data<float>() + begin, x.data<float>() + begin, end - begin);
  });
}

void CpuTrainOps::square_sums(const Tensor& x, const Tensor& sums) {
  check_sizes((x.numel() + square_block - 1) / square_block, {&sums});
  pool_.parallel_for(sums.numel(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      sums.data<double>()[i] = train_.sum_squares(x.data<float>() + i * square_block, std::min(square_block, x.numel() - i * square_block));
    }
  });
}

double CpuTrainOps::sum_squares(const Tensor& x) {
  std::vector<double> sums(static_cast<std::size_t>((x.numel() + square_block - 1) / square_block));
  square_sums(x, {nullptr, sums.data(), DType::f64, {std::ssize(sums)}});
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void CpuTrainOps::adamw(const AdamwStep& step, const Tensor& p, const Tensor& g, const Tensor& m, const Tensor& v) {
  check_sizes(p.numel(), {&g, &m, &v});
  pool_.parallel_for(p.numel(), grain, [&](std::int64_t i, std::int64_t end) {
    train_.adamw(step, p.data<float>() + i, g.data<float>() + i, m.data<float>() + i, v.data<float>() + i, end - i);
  });
}

void CpuTrainOps::momentum(const MuonStep& step, const Tensor& g, const Tensor& m, const Tensor& update) {
  check_sizes(g.numel(), {&m, &update});
  pool_.parallel_for(g.numel(), grain, [&](std::int64_t i, std::int64_t end) {
    train_.momentum(step, g.data<float>() + i, m.data<float>() + i, update.data<float>() + i, end - i);
  });
}

void CpuTrainOps::apply(const Decay& decay, float rate, const Tensor& p, const Tensor& update) {
  check_sizes(p.numel(), {&update});
  pool_.parallel_for(p.numel(), grain, [&](std::int64_t i, std::int64_t end) {
    train_.apply(decay, rate, p.data<float>() + i, update.data<float>() + i, end - i);
  });
}

void CpuTrainOps::scale_add(float a, const Tensor& x, float b, const Tensor& out) {
  check_sizes(x.numel(), {&out});
  pool_.parallel_for(x.numel(), grain, [&](std::int64_t i, std::int64_t end) {
    train_.scale_add(a, x.data<float>() + i, b, out.data<float>() + i, end - i);
  });
}

}  // namespace kvmesh::cpu
