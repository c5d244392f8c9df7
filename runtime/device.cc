// Shapes, dtypes and ranges of every operation, checked once for all devices; and the factory.
#include "runtime/device.h"

#include "runtime/cpu/cpu_device.h"
#ifdef KVMESH_CUDA
#include "runtime/cuda/cuda.h"
#endif

#include <algorithm>
#include <atomic>

namespace kvmesh {
namespace {

// Every pass comes through here, so messages are only formatted once something is wrong.

std::string show(const Tensor& t) { return t.defined() ? fmt::format("{}{}", name_of(t.dtype()), to_string(t.shape())) : "nothing"; }

/// `t` must be a tensor of this dtype and shape.
void expect(const char* op, const char* name, const Tensor& t, DType dtype, Shape shape) {
  const bool fits = t.dtype() == dtype && t.shape() == shape && (t.defined() || shape.numel() == 0);
  if (!fits) fail(Fault::usage, "{}: {} is {}, expected {}{}", op, name, show(t), name_of(dtype), to_string(shape));
}

/// `t` must be a float32 or bfloat16 tensor with so many dimensions.
void expect_floats(const char* op, const char* name, const Tensor& t, int rank) {
  const bool fits = (t.dtype() == DType::f32 || t.dtype() == DType::bf16) && t.shape().rank() == rank;
  if (!fits) fail(Fault::usage, "{}: {} is {}, expected float32 or bfloat16 with {} dimensions", op, name, show(t), rank);
}

struct Heads {
  std::int64_t places, kv_heads, size, head_dim;
};

Heads expect_cache(const char* op, const LayerCache& cache) {
  expect_floats(op, "the key cache", cache.k, 4);
  expect(op, "the value cache", cache.v, cache.k.dtype(), cache.k.shape());
  const Heads h{cache.k.size(0), cache.k.size(1), cache.k.size(2), cache.k.size(3)};
  const bool fits = h.kv_heads > 0 && h.size > 0 && h.head_dim > 0 && h.head_dim % 2 == 0;
  if (!fits) fail(Fault::usage, "{}: a cache {} has no heads, no slots or an odd head_dim", op, to_string(cache.k.shape()));
  return h;
}

/// Segments must lie within the packed rows and the cache, and a row's keys must fit the ring.
void expect_segments(const char* op, std::span<const Segment> segments, std::int64_t rows, const Heads& h) {
  for (std::size_t i = 0; i < segments.size(); ++i) {
    const Segment& s = segments[i];
    check(s.count > 0 && s.offset >= 0 && s.offset + std::int64_t{s.count} <= rows, "{}: segment {} has rows [{}, {} + {}) of {}", op, i, s.offset,
          s.offset, s.count, rows);
    check(s.place >= 0 && s.place < h.places, "{}: segment {} has place {} of {}", op, i, s.place, h.places);
    check(s.start >= 0 && s.begin >= s.start && s.begin + s.count - s.start <= h.size,
          "{}: segment {} holds positions [{}, {} + {}) of a row that starts at {}: not within a ring of {}", op, i, s.begin, s.begin, s.count, s.start,
          h.size);
  }
}

std::int64_t expect_heads(const char* op, const Tensor& q, const Heads& h) {
  expect_floats(op, "q", q, 2);
  const std::int64_t heads = q.size(1) / h.head_dim;
  const bool fits = heads > 0 && q.size(1) == heads * h.head_dim && heads % h.kv_heads == 0;
  if (!fits) fail(Fault::usage, "{}: q is {}, whose heads do not fit {} key heads of {}", op, show(q), h.kv_heads, h.head_dim);
  return heads;
}

}  // namespace

std::unique_ptr<Download> Device::download(const Tensor& source) {
  struct Here final : Download {
    Tensor tensor;
    explicit Here(const Tensor& t) : tensor(t) {}
    const Tensor& wait() override { return tensor; }
  };
  return std::make_unique<Here>(source);
}

Pass Device::prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const Tensor& from) {
  if (from.defined()) {
    expect("prepare", "the tokens", from, DType::i32, {from.numel()});
    for (std::size_t i = 0; i < ids.size(); ++i) check(ids[i] >= 0 && ids[i] < from.size(0), "prepare: token {} is at {} of {}", i, ids[i], from.size(0));
  }
  return do_prepare(ids, segments, wanted, from);
}

Device::Product Device::library_product(const Tensor&, const Tensor&, const Tensor&) { return {}; }

std::size_t Device::weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize) const {
  check(dtype == DType::f32 || dtype == DType::bf16, "a weight is float32 or bfloat16, not {}", name_of(dtype));
  check(k > 0 && n > 0, "a weight [{}, {}] is empty", k, n);
  return do_weight_bytes(dtype, k, n, quantize);
}

void Device::pack_weight(const Tensor& source, DType dtype, void* target, Quantize quantize) const {
  expect_floats("pack_weight", "the weight", source, 2);
  weight_bytes(dtype, source.size(0), source.size(1), quantize);
  do_pack_weight(source, dtype, quantize, target);
}

void Device::gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) {
  expect_floats("gather_rows", "the table", table, 2);
  if (ids.shape().rank() != 1) fail(Fault::usage, "gather_rows: ids is {}, expected int32 with 1 dimension", show(ids));
  expect("gather_rows", "ids", ids, DType::i32, {ids.size(0)});
  expect("gather_rows", "out", out, table.dtype(), {ids.size(0), table.size(1)});
  if (out.numel() > 0) do_gather_rows(table, ids, out);
}

void Device::add_positions(const Tensor& table, const Pass& pass, const Tensor& x) {
  expect_floats("add_positions", "the table", table, 2);
  expect("add_positions", "x", x, table.dtype(), {x.size(0), table.size(1)});
  for (const Segment& s : pass.segments) {
    check(s.count > 0 && s.offset >= 0 && s.offset + std::int64_t{s.count} <= x.size(0) && s.begin >= s.start && s.begin + s.count - s.start <= table.size(0),
          "add_positions: positions [{}, + {}) of a row that starts at {}, for rows [{}, + {}) of {}, of a table of {}", s.begin, s.count, s.start, s.offset, s.count, x.size(0), table.size(0));
  }
  if (!pass.segments.empty()) do_add_positions(table, pass, x);
}

void Device::norm(const Tensor& x, const Norm& norm, const Tensor& out) {
  expect_floats("norm", "x", x, 2);
  expect("norm", "out", out, x.dtype(), x.shape());
  check(norm.eps >= 0, "norm: eps is {}, expected 0 or more", norm.eps);
  if (norm.weight.defined()) expect("norm", "the weight", norm.weight, DType::f32, {x.size(1)});
  if (norm.bias.defined()) expect("norm", "the bias", norm.bias, DType::f32, {x.size(1)});
  if (out.numel() > 0) do_norm(x, norm, out);
}

void Device::swiglu(const Tensor& x, const Tensor& out) {
  expect_floats("swiglu", "out", out, 2);
  expect("swiglu", "x", x, out.dtype(), {out.size(0), 2 * out.size(1)});
  if (out.numel() > 0) do_swiglu(x, out);
}

void Device::linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap, std::int64_t column, std::int64_t width) {
  expect_floats("linear", "x", x, 2);
  expect("linear", "x", x, w.dtype, {x.size(0), w.k});
  expect("linear", "the packed weight", w.data, DType::u8, {static_cast<std::int64_t>(weight_bytes(w.dtype, w.k, w.n, w.quantize))});
  if (w.bias.defined()) expect("linear", "the bias", w.bias, DType::f32, {w.n});
  expect("linear", "out", out, out.dtype() == DType::f32 ? DType::f32 : x.dtype(), {x.size(0), width});
  check(column >= 0 && column + w.n <= width, "linear: columns [{}, {}) of an output of {}", column, column + w.n, width);
  check(epilogue != Epilogue::soft_cap || cap > 0, "linear: the soft cap is {}, expected more than 0", cap);
  if (out.numel() > 0) do_linear(x, w, epilogue, out, cap, column);
}

Weight Device::columns(const Weight& w, std::int64_t begin, std::int64_t end) const {
  check(0 <= begin && begin < end && end <= w.n && begin % column_unit == 0 && (end % column_unit == 0 || end == w.n) && w.quantize == Quantize::none,
        "columns: [{}, {}) of a weight of {}, {}", begin, end, w.n, name_of(w.quantize));
  const auto bytes = [&](std::int64_t n) { return n == 0 ? 0 : static_cast<std::int64_t>(weight_bytes(w.dtype, w.k, n)); };
  return {w.k, end - begin, w.dtype, w.data.slice(bytes(begin), bytes(end)), w.bias.defined() ? w.bias.slice(begin, end) : Tensor(), w.quantize};
}

void Device::norm_rope_append(const Tensor& qkv, const Pass& pass, const Tensor& rope, const HeadNorm& norm, const Tensor& q,
                              const LayerCache& cache) {
  const char* op = "norm_rope_append";
  const Heads h = expect_cache(op, cache);
  const std::int64_t heads = expect_heads(op, q, h);
  expect(op, "q", q, cache.k.dtype(), q.shape());
  expect(op, "qkv", qkv, q.dtype(), {q.size(0), (heads + 2 * h.kv_heads) * h.head_dim});
  if (rope.defined()) expect(op, "the RoPE table", rope, DType::f32, {std::max(rope.size(0), h.size), h.head_dim});
  check(norm.eps >= 0, "{}: eps is {}, expected 0 or more", op, norm.eps);
  check(norm.q.defined() == norm.k.defined() && !(norm.off && norm.q.defined()), "{}: weights of norms belong to query and key heads that are normed", op);
  if (norm.q.defined()) {
    expect(op, "the queries' norm weight", norm.q, DType::f32, {h.head_dim});
    expect(op, "the keys' norm weight", norm.k, DType::f32, {h.head_dim});
  }
  expect_segments(op, pass.segments, q.size(0), h);
  if (!pass.segments.empty()) do_norm_rope_append(qkv, pass, rope, norm, q, cache);
}

void Device::attention(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out) {
  const Heads h = expect_cache("attention", cache);
  expect_heads("attention", q, h);
  expect("attention", "q", q, cache.k.dtype(), q.shape());
  expect("attention", "out", out, q.dtype(), q.shape());
  expect_segments("attention", pass.segments, q.size(0), h);
  if (!pass.segments.empty()) do_attention(q, pass, cache, window, out);
}

void Device::copy_rows(const LayerCache& cache, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to, std::int64_t count) {
  const Heads h = expect_cache("copy_rows", cache);
  check(source >= 0 && source < h.places && target >= 0 && target < h.places && source != target,
        "copy_rows: from place {} to place {} of {}: expected two different ones", source, target, h.places);
  check(from >= 0 && to >= 0 && count >= 0 && count <= h.size, "copy_rows: {} positions from {} to {} in a ring of {}", count, from, to, h.size);
  if (count > 0) do_copy_rows(cache, source, from, target, to, count);
}

void Device::sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out) {
  if (logits.shape().rank() != 2 || logits.size(1) == 0) fail(Fault::usage, "sample: logits is {}, expected float32 with 2 dimensions", show(logits));
  const auto count = static_cast<std::int64_t>(rows.size());
  const std::int64_t vocab = logits.size(1);
  expect("sample", "logits", logits, DType::f32, {count, vocab});
  expect("sample", "tokens", out.tokens, DType::i32, {count});
  std::int64_t best = 0;
  if (out.top_ids.defined()) {
    check(out.top_ids.shape().rank() == 2 && out.top_ids.size(1) <= vocab, "sample: top_ids is {}, expected int32 with 2 dimensions, at most {} a row",
          show(out.top_ids), vocab);
    best = out.top_ids.size(1);
    expect("sample", "top_ids", out.top_ids, DType::i32, {count, best});
    check(out.log_probs.defined(), "sample: top_ids without log_probs");
  }
  if (out.log_probs.defined()) expect("sample", "log_probs", out.log_probs, DType::f32, {count, 1 + best});
  for (std::size_t r = 0; r < rows.size(); ++r) check(rows[r].forced < vocab, "sample: row {} forces id {} of {}", r, rows[r].forced, vocab);
  if (count > 0) do_sample(logits, rows, out);
}

std::uint64_t serial_number() {
  static std::atomic<std::uint64_t> last = 0;
  return ++last;
}

std::string cuda_versions() {
#ifdef KVMESH_CUDA
  return cuda::versions();
#else
  return "not compiled in";
#endif
}

std::string cudnn_versions() {
#ifdef KVMESH_CUDA
  return cuda::cudnn_versions();
#else
  return "not compiled in";
#endif
}

std::unique_ptr<Device> make_device(std::string_view kind, const DeviceOptions& options) {
  check(kind == "cpu" || kind == "cuda" || kind == "auto", "--device {}: not one of cpu, cuda, auto", kind);
  check(options.threads >= 0, "a device has {} threads: expected 1 or more, or 0 for all", options.threads);
#ifdef KVMESH_CUDA
  const bool answers = cuda::device_count() > 0;
  if (kind == "cuda" && !answers) fail(Fault::usage, "--device cuda: no GPU answers: {} (CUDA {})", cuda::why_none(), cuda::versions());
  if (kind != "cpu" && answers) return cuda::make_device(options);
#else
  check(kind != "cuda", "--device cuda: this build has no CUDA");
#endif
  check(options.attention != Attention::cudnn, "--attention cudnn: for GPUs only, and this rank computes on the CPU");
  return std::make_unique<cpu::CpuDevice>(options.threads);
}

}  // namespace kvmesh
