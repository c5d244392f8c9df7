// How each operation is divided among the threads; the arithmetic is in kernels/.
#include "runtime/cpu/cpu_device.h"

#include "runtime/cpu/isa.h"
#include "runtime/cpu/sample.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace kvmesh::cpu {
namespace {

const Kernels& kernels_of(Isa isa) {
  switch (isa) {
    case Isa::amx: return amx::kernels;
    case Isa::avx512_bf16: return avx512_bf16::kernels;
    case Isa::avx512: return avx512::kernels;
    case Isa::avx2: return avx2::kernels;
    default: return scalar::kernels;
  }
}

/// Element `element` of t.
std::byte* at(const Tensor& t, std::int64_t element) {
  return static_cast<std::byte*>(t.raw()) + element * static_cast<std::int64_t>(size_of(t.dtype()));
}

const float* floats_or_null(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

WeightForm form_of(DType dtype, Quantize quantize) { return {dtype == DType::bf16, quantize == Quantize::int8}; }

}  // namespace

void* scratch(std::size_t bytes) {
  struct Memory {
    void* data = nullptr;
    std::size_t size = 0;
    ~Memory() { std::free(data); }
  };
  thread_local Memory memory;
  if (memory.size < bytes) {
    std::free(memory.data);
    memory.size = (bytes + 4095) / 4096 * 4096;
    memory.data = std::aligned_alloc(4096, memory.size);
    if (!memory.data) {
      memory.size = 0;
      fail(Fault::rank, "out of memory: {} bytes of scratch memory", bytes);
    }
  }
  return memory.data;
}

CpuDevice::CpuDevice(int threads) : kernels_(kernels_of(isa())), pool_(threads > 0 ? threads : available_cpus()), train_ops_(kernels_, pool_) {}

std::string CpuDevice::describe() const {
  return fmt::format("cpu ({}, {} thread{})", isa_names[static_cast<int>(isa())], pool_.size(), pool_.size() == 1 ? "" : "s");
}

std::string CpuDevice::kind() const { return fmt::format("cpu/{}", isa_names[static_cast<int>(isa())]); }

void CpuDevice::copy(const Tensor& source, const Tensor& target) {
  check(source.dtype() == target.dtype() && source.shape() == target.shape(), "copy: {}{} does not fit {}{}", name_of(source.dtype()),
        to_string(source.shape()), name_of(target.dtype()), to_string(target.shape()));
  if (source.bytes() > 0 && source.raw() != target.raw()) std::memmove(target.raw(), source.raw(), source.bytes());
}

Pass CpuDevice::do_prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const Tensor& from) {
  if (from.defined()) {
    const std::int32_t* const tokens = from.data<std::int32_t>();
    ids_.resize(ids.size());
    std::transform(ids.begin(), ids.end(), ids_.begin(), [&](std::int32_t at) { return tokens[at]; });
    ids = ids_;
  }
  const auto view = [](std::span<const std::int32_t> x) {  // only read
    return Tensor(nullptr, const_cast<std::int32_t*>(x.data()), DType::i32, {static_cast<std::int64_t>(x.size())});
  };
  return {segments, view(ids), view(wanted), {}, {}};
}

std::size_t CpuDevice::do_weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize) const {
  return static_cast<std::size_t>(ceil_div(n, kernels_.panel) * kernels_.panel_bytes(form_of(dtype, quantize), k));
}

void CpuDevice::do_pack_weight(const Tensor& source, DType dtype, Quantize quantize, void* target) const {
  const std::int64_t k = source.size(0), n = source.size(1);
  pool_.parallel_for(ceil_div(n, kernels_.panel), [&](std::int64_t begin, std::int64_t end) {
    kernels_.pack(source.raw(), source.dtype() == DType::bf16, form_of(dtype, quantize), k, n, begin, end, target);
  });
}

void CpuDevice::do_gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) {
  const std::int64_t d = table.size(1);
  const std::span<const std::int32_t> id = ids.span<std::int32_t>();
  for (std::size_t t = 0; t < id.size(); ++t) {
    check(id[t] >= 0 && id[t] < table.size(0), "token id {} is outside the vocabulary of {}", id[t], table.size(0));
  }
  pool_.parallel_for(ids.size(0), 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      std::memcpy(at(out, t * d), at(table, id[static_cast<std::size_t>(t)] * d), static_cast<std::size_t>(d) * size_of(table.dtype()));
    }
  });
}

void CpuDevice::do_add_positions(const Tensor& table, const Pass& pass, const Tensor& x) {
  const std::int64_t d = x.size(1);
  for (const Segment& s : pass.segments) {
    pool_.parallel_for(s.count, 64, [&](std::int64_t begin, std::int64_t end) {
      void* memory = scratch(2 * kernels_.row_scratch(d));
      for (std::int64_t i = begin; i < end; ++i) kernels_.add_row(at(x, (s.offset + i) * d), at(table, (s.begin - s.start + i) * d), x.dtype() == DType::bf16, d, memory);
    });
  }
}

void CpuDevice::do_norm(const Tensor& x, const Norm& norm, const Tensor& out) {
  const std::int64_t d = x.size(1);
  const NormTask task{.width = d, .weight = floats_or_null(norm.weight), .bias = floats_or_null(norm.bias), .eps = norm.eps, .centred = norm.centred, .bf16 = x.dtype() == DType::bf16};
  pool_.parallel_for(x.size(0), 16, [&](std::int64_t begin, std::int64_t end) {
    void* memory = scratch(kernels_.row_scratch(d));
    for (std::int64_t t = begin; t < end; ++t) kernels_.norm(task, at(x, t * d), at(out, t * d), memory);
  });
}

void CpuDevice::do_swiglu(const Tensor& x, const Tensor& out) {
  const std::int64_t f = out.size(1);
  pool_.parallel_for(x.size(0), 4, [&](std::int64_t begin, std::int64_t end) {
    void* memory = scratch(2 * kernels_.row_scratch(f));
    for (std::int64_t t = begin; t < end; ++t) kernels_.swiglu(at(x, t * 2 * f), at(out, t * f), x.dtype() == DType::bf16, f, memory);
  });
}

void CpuDevice::do_linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap, std::int64_t column) {
  const LinearTask task{.x = x.raw(),
                        .w = w.data.raw(),
                        .out = at(out, column),
                        .k = w.k,
                        .n = w.n,
                        .stride = out.size(1),
                        .bf16 = w.dtype == DType::bf16,
                        .out_bf16 = out.dtype() == DType::bf16,
                        .int8 = w.quantize == Quantize::int8,
                        .bias = w.bias.defined() ? w.bias.data<float>() : nullptr,
                        .epilogue = epilogue,
                        .cap = cap};
  // Blocks of rows, each divided by panels into equal parts, for balance about four a thread.
  const std::int64_t rows = x.size(0), panels = ceil_div(w.n, kernels_.panel);
  const std::int64_t block = kernels_.block_rows(task.bf16, task.k), blocks = ceil_div(rows, block);
  const std::int64_t part = ceil_div(panels, std::max<std::int64_t>(4 * pool_.size() / blocks, 1)), parts = ceil_div(panels, part);
  pool_.parallel_for(blocks * parts, 1, [&](std::int64_t begin, std::int64_t end) {
    void* memory = scratch(kernels_.linear_scratch(task.form(), task.k, ceil_div(rows, blocks)));
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t r = i / parts, p = i % parts;
      kernels_.linear(task, rows * r / blocks, rows * (r + 1) / blocks, panels * p / parts, panels * (p + 1) / parts, memory);
    }
  });
}

void CpuDevice::do_norm_rope_append(const Tensor& qkv, const Pass& pass, const Tensor& rope, const HeadNorm& norm, const Tensor& q,
                                    const LayerCache& cache) {
  const std::int64_t kv_heads = cache.k.size(1), size = cache.k.size(2), h = cache.k.size(3), heads = q.size(1) / h;
  const std::int64_t width = (heads + 2 * kv_heads) * h;
  const std::span<const Segment> segments = pass.segments;
  const auto append = [&](const Segment& s, std::int64_t i, void* memory) {
    const std::int64_t position = s.begin + i, slot = (s.place * kv_heads * size + position % size) * h;
    const AppendTask task{.qkv = at(qkv, (s.offset + i) * width),
                          .q = at(q, (s.offset + i) * heads * h),
                          .k = at(cache.k, slot),
                          .v = at(cache.v, slot),
                          .rope = rope.defined() ? rope.data<float>() + (position - s.start) * h : nullptr,
                          .heads = heads,
                          .kv_heads = kv_heads,
                          .head_dim = h,
                          .head_stride = size * h,
                          .norm = !norm.off,
                          .q_weight = floats_or_null(norm.q),
                          .k_weight = floats_or_null(norm.k),
                          .eps = norm.eps,
                          .bf16 = qkv.dtype() == DType::bf16};
    kernels_.append(task, memory);
  };
  const std::size_t bytes = kernels_.row_scratch(h);
  if (segments.size() == 1) {
    pool_.parallel_for(segments[0].count, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) append(segments[0], i, scratch(bytes));
    });
    return;
  }
  pool_.parallel_for(static_cast<std::int64_t>(segments.size()), 4, [&](std::int64_t begin, std::int64_t end) {
    for (const Segment& s : segments.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin))) {
      for (std::int64_t i = 0; i < s.count; ++i) append(s, i, scratch(bytes));
    }
  });
}

void CpuDevice::do_attention(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out) {
  const std::int64_t kv_heads = cache.k.size(1), size = cache.k.size(2), h = cache.k.size(3), width = q.size(1), group = width / h / kv_heads;
  constexpr std::int64_t queries = 96;  // that share one reading of the keys
  const std::int64_t tokens = std::max<std::int64_t>(1, queries / group);
  std::vector<AttentionPart>& parts = attention_parts_;
  parts.clear();
  for (const Segment& s : pass.segments) {  // a prompt's last tokens first: they have the most keys
    for (std::int64_t i = ceil_div(s.count, tokens) - 1; i >= 0; --i) {
      for (std::int64_t head = 0; head < kv_heads; ++head) parts.push_back({&s, head, i * tokens});
    }
  }
  pool_.parallel_for(static_cast<std::int64_t>(parts.size()), 1, [&](std::int64_t begin, std::int64_t end) {
    void* memory = scratch(kernels_.attention_scratch(h, tokens * group));
    for (std::int64_t i = begin; i < end; ++i) {
      const auto& [s, head, first] = parts[static_cast<std::size_t>(i)];
      const std::int64_t row = (s->offset + first) * width + head * group * h, ring = (s->place * kv_heads + head) * size * h;
      const AttentionTask task{.q = at(q, row),
                               .out = at(out, row),
                               .k = at(cache.k, ring),
                               .v = at(cache.v, ring),
                               .stride = width,
                               .size = size,
                               .head_dim = h,
                               .group = group,
                               .tokens = std::min(tokens, s->count - first),
                               .start = s->start,
                               .position = s->begin + first,
                               .window = window,
                               .bf16 = q.dtype() == DType::bf16};
      kernels_.attention(task, memory);
    }
  });
}

void CpuDevice::do_copy_rows(const LayerCache& cache, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to, std::int64_t count) {
  const std::int64_t kv_heads = cache.k.size(1), size = cache.k.size(2), h = cache.k.size(3);
  for (const Tensor* ring : {&cache.k, &cache.v}) {
    pool_.parallel_for(kv_heads, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t head = begin; head < end; ++head) {
        for (std::int64_t done = 0, run; done < count; done += run) {  // as far as neither side wraps
          const std::int64_t a = (from + done) % size, b = (to + done) % size;
          run = std::min({count - done, size - a, size - b});
          std::memmove(at(*ring, ((target * kv_heads + head) * size + b) * h), at(*ring, ((source * kv_heads + head) * size + a) * h),
                       static_cast<std::size_t>(run * h) * size_of(ring->dtype()));
        }
      }
    });
  }
}

void CpuDevice::do_sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out) { cpu::sample(logits, rows, out, pool_); }

}  // namespace kvmesh::cpu
