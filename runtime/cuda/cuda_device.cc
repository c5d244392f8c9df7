// Memory, uploads, and tensors turned into the kernels' tasks.
#include "runtime/cuda/cuda_device.h"

#include "runtime/cuda/cuda.h"

#include <algorithm>
#include <cstring>

namespace kvmesh::cuda {
namespace {

std::size_t rounded(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

std::string megabytes(std::size_t bytes) { return fmt::format("{:.0f} MiB", static_cast<double>(bytes) / (1 << 20)); }

Tensor pinned_memory(std::size_t bytes) {
  void* p = nullptr;
  must(cudaMallocHost(&p, bytes));
  return {std::shared_ptr<void>(p, [](void* q) { cudaFreeHost(q); }), p, DType::u8, {static_cast<std::int64_t>(bytes)}};
}

bool is_bf16(const Tensor& t) { return t.dtype() == DType::bf16; }

const float* floats_or_null(const Tensor& t) { return t.defined() ? t.data<float>() : nullptr; }

std::int64_t row_bytes(const Tensor& t, std::int64_t width) { return width * static_cast<std::int64_t>(size_of(t.dtype())); }

}  // namespace

void must(cudaError_t status, std::source_location where) {
  if (status != cudaSuccess) fail(Fault::rank, "CUDA: {} ({}, line {})", cudaGetErrorString(status), where.function_name(), where.line());
}

int device_count() {
  int count = 0;  // left as it is where there is no driver
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

std::string why_none() {
  int count = 0, driver = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "there is no driver";
  return status == cudaSuccess ? "this process sees none" : cudaGetErrorString(status);
}

std::string versions() {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const auto name = [](int v) { return v == 0 ? std::string("none") : fmt::format("{}.{}", v / 1000, v % 1000 / 10); };
  return fmt::format("{} (driver: {})", name(runtime), name(driver));
}

std::unique_ptr<Device> make_device(const DeviceOptions& options) { return std::make_unique<CudaDevice>(options); }

CudaDevice::CudaDevice(const DeviceOptions& options) : gpu_(options.gpu) {
  const int count = device_count();
  kvmesh::check(gpu_ >= 0 && gpu_ < count, "--device cuda: this rank asks for GPU {} of {}", gpu_, count);
  must(cudaSetDevice(gpu_));
  must(cudaGetDeviceProperties(&properties_, gpu_));
  kvmesh::check(properties_.major >= 8, "--device cuda: GPU {} ({}) has compute capability {}.{}; 8.0 or later is needed", gpu_, properties_.name, properties_.major,
                properties_.minor);
  stream_ = std::make_shared<Stream>();
  cudaMemPool_t pool = nullptr;  // keeps what is freed: the next step asks for the same again
  std::uint64_t all = ~std::uint64_t{0};
  must(cudaDeviceGetDefaultMemPool(&pool, gpu_));
  must(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all));
  queue_ = {stream_->handle, properties_.multiProcessorCount, properties_.major >= 9};
  if (options.attention == Attention::cudnn) cudnn_ = std::make_unique<CudnnAttention>(stream_->handle, 10 * properties_.major + properties_.minor);
}

std::string CudaDevice::describe() const {
  return fmt::format("cuda ({}, sm_{}{}, CUDA {}{})", properties_.name, properties_.major, properties_.minor, versions(), cudnn_ ? ", attention by " + cudnn_->name() : "");
}

std::string CudaDevice::kind() const { return fmt::format("cuda/sm_{}{}{}", properties_.major, properties_.minor, cudnn_ ? "/" + cudnn_->name() : ""); }

std::int64_t CudaDevice::free_bytes() const {
  std::size_t free = 0, total = 0;
  must(cudaMemGetInfo(&free, &total));
  return static_cast<std::int64_t>(free);
}

Tensor CudaDevice::empty(DType dtype, Shape shape) {
  const std::size_t bytes = std::max<std::size_t>(static_cast<std::size_t>(shape.numel()) * size_of(dtype), 1);
  void* p = nullptr;
  const cudaError_t status = cudaMallocAsync(&p, bytes, stream_->handle);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(Fault::rank, "out of GPU memory: {} for a tensor {} of {}, {} of {} are free (GPU {}, {})", megabytes(bytes), to_string(shape), name_of(dtype), megabytes(free),
         megabytes(total), gpu_, properties_.name);
  }
  must(status);
  return {std::shared_ptr<void>(p, [stream = stream_](void* q) { cudaFreeAsync(q, stream->handle); }), p, dtype, shape};
}

void CudaDevice::copy(const Tensor& source, const Tensor& target) {
  kvmesh::check(source.dtype() == target.dtype() && source.shape() == target.shape(), "copy: {}{} does not fit {}{}", name_of(source.dtype()),
                to_string(source.shape()), name_of(target.dtype()), to_string(target.shape()));
  if (source.bytes() > 0) must(cudaMemcpyAsync(target.raw(), source.raw(), source.bytes(), cudaMemcpyDefault, stream_->handle));
  must(cudaStreamSynchronize(stream_->handle));
  queue_.weights_written = false;
}

// In pieces through pinned memory: while one is on its way, the next is read (from a file that is mapped, perhaps).
Tensor CudaDevice::resident(const Tensor& host) {
  const Tensor out = empty(host.dtype(), host.shape());
  constexpr std::size_t piece = std::size_t{32} << 20;
  Pinned pieces[2];
  for (std::size_t done = 0, i = 0; done < host.bytes(); done += piece, ++i) {
    const std::size_t bytes = std::min(piece, host.bytes() - done);
    Pinned& p = pieces[i % 2];
    std::memcpy(p.claim(bytes), static_cast<const std::byte*>(host.raw()) + done, bytes);
    must(cudaMemcpyAsync(static_cast<std::byte*>(out.raw()) + done, p.memory.raw(), bytes, cudaMemcpyDefault, stream_->handle));
    must(cudaEventRecord(p.done, stream_->handle));
  }
  must(cudaStreamSynchronize(stream_->handle));
  return out;
}

void CudaDevice::grow(Tensor& memory, std::size_t bytes) {
  if (memory.defined() && memory.bytes() >= bytes) return;
  graphs_.clear();
  rows_of_.reset();
  memory = empty(DType::u8, {static_cast<std::int64_t>(std::max(bytes, 2 * memory.bytes()))});
}

std::byte* CudaDevice::Pinned::claim(std::size_t bytes) {
  must(cudaEventSynchronize(done));
  if (!memory.defined() || memory.bytes() < bytes) memory = pinned_memory(std::max<std::size_t>(bytes, 1));  // of 0 bytes there is no address
  return static_cast<std::byte*>(memory.raw());
}

std::byte* CudaDevice::begin_upload(Upload& upload, std::size_t bytes) {
  const std::size_t room = upload.device.defined() ? upload.device.bytes() : 0;
  if (room < bytes) grow(upload.device, std::max<std::size_t>(2 * bytes, 4096));
  upload.turn ^= 1;
  return upload.pinned[upload.turn].claim(upload.device.bytes());
}

void CudaDevice::end_upload(Upload& upload, std::size_t bytes) {
  const Pinned& pinned = upload.pinned[upload.turn];
  must(cudaMemcpyAsync(upload.device.raw(), pinned.memory.raw(), bytes, cudaMemcpyDefault, stream_->handle));
  must(cudaEventRecord(pinned.done, stream_->handle));
}

Pass CudaDevice::do_prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const Tensor& from) {
  rows_of_.reset();
  std::int64_t tokens = std::ssize(ids);
  for (const Segment& s : segments) tokens = std::max(tokens, std::int64_t{s.offset} + s.count);
  const std::size_t runs_at = 0, ids_at = runs_at + rounded(segments.size_bytes()), wanted_at = ids_at + rounded(ids.size_bytes()),
                    run_of_at = wanted_at + rounded(wanted.size_bytes()), bytes = run_of_at + static_cast<std::size_t>(tokens) * sizeof(std::int32_t);
  std::byte* host = begin_upload(pass_upload_, bytes);
  std::copy(segments.begin(), segments.end(), reinterpret_cast<Segment*>(host + runs_at));
  std::copy(ids.begin(), ids.end(), reinterpret_cast<std::int32_t*>(host + ids_at));
  std::copy(wanted.begin(), wanted.end(), reinterpret_cast<std::int32_t*>(host + wanted_at));
  auto* run_of = reinterpret_cast<std::int32_t*>(host + run_of_at);
  std::fill_n(run_of, tokens, -1);
  for (std::size_t i = 0; i < segments.size(); ++i) {
    kvmesh::check(segments[i].offset >= 0 && segments[i].count >= 0, "segment {} has rows [{}, + {})", i, segments[i].offset, segments[i].count);
    std::fill_n(run_of + segments[i].offset, segments[i].count, static_cast<std::int32_t>(i));
  }
  end_upload(pass_upload_, bytes);
  const auto part = [&](std::size_t at, DType dtype, std::int64_t n) { return Tensor(nullptr, static_cast<std::byte*>(pass_upload_.device.raw()) + at, dtype, {n}); };
  if (from.defined() && !ids.empty()) must(cuda::take_ids(queue_, from.data<std::int32_t>(), part(ids_at, DType::i32, std::ssize(ids)).data<std::int32_t>(), std::ssize(ids)));
  return {segments, part(ids_at, DType::i32, std::ssize(ids)), part(wanted_at, DType::i32, std::ssize(wanted)),
          part(runs_at, DType::u8, static_cast<std::int64_t>(segments.size_bytes())), part(run_of_at, DType::i32, tokens)};
}

std::size_t CudaDevice::do_weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize) const {
  return cuda::weight_bytes({dtype == DType::bf16, quantize == Quantize::int8, k, n});
}

void CudaDevice::do_pack_weight(const Tensor& source, DType dtype, Quantize quantize, void* target) const {
  cuda::pack_weight(source.raw(), is_bf16(source), {dtype == DType::bf16, quantize == Quantize::int8, source.size(0), source.size(1)}, target);
}

void CudaDevice::do_gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) {
  must(cuda::gather_rows(queue_, table.raw(), table.size(0), row_bytes(table, table.size(1)), ids.data<std::int32_t>(), ids.size(0), out.raw()));
}

void CudaDevice::do_add_positions(const Tensor& table, const Pass& pass, const Tensor& x) {
  must(cuda::add_positions(queue_, {reinterpret_cast<const Segment*>(pass.device_runs.raw()), pass.run_of.data<std::int32_t>(), table.raw(), x.raw(),
                              std::min(pass.run_of.size(0), x.size(0)), x.size(1), is_bf16(x)}));
}

void CudaDevice::do_norm(const Tensor& x, const Norm& norm, const Tensor& out) {
  must(cuda::norm(queue_, {x.raw(), out.raw(), x.size(0), x.size(1), floats_or_null(norm.weight), floats_or_null(norm.bias), norm.eps, norm.centred, is_bf16(x)}));
}

void CudaDevice::do_swiglu(const Tensor& x, const Tensor& out) { must(cuda::swiglu(queue_, x.raw(), out.raw(), is_bf16(x), out.size(0), out.size(1))); }

void CudaDevice::do_linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap, std::int64_t column) {
  std::byte* const to = static_cast<std::byte*>(out.raw()) + row_bytes(out, column);
  must(cuda::linear(queue_, {x.raw(), w.data.raw(), to, x.size(0), w.k, w.n, out.size(1), w.dtype == DType::bf16, w.quantize == Quantize::int8, is_bf16(out),
                             w.bias.defined() ? w.bias.data<float>() : nullptr, epilogue, cap}));
}

RingTask ring_of(const Tensor& q, const Pass& pass, const LayerCache& cache) {
  const std::int64_t h = cache.k.size(3);
  return {reinterpret_cast<const Segment*>(pass.device_runs.raw()),
          pass.run_of.data<std::int32_t>(),
          cache.k.raw(),
          cache.v.raw(),
          std::min(pass.run_of.size(0), q.size(0)),
          q.size(1) / h,
          cache.k.size(1),
          cache.k.size(2),
          h,
          is_bf16(q)};
}

void CudaDevice::do_norm_rope_append(const Tensor& qkv, const Pass& pass, const Tensor& rope, const HeadNorm& norm, const Tensor& q, const LayerCache& cache) {
  must(cuda::append(queue_, {ring_of(q, pass, cache), qkv.raw(), q.raw(), floats_or_null(rope), !norm.off, floats_or_null(norm.q), floats_or_null(norm.k), norm.eps}));
}

void CudaDevice::do_copy_rows(const LayerCache& cache, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to, std::int64_t count) {
  must(cuda::copy_rows(queue_, {cache.k.raw(), cache.v.raw(), cache.k.size(1), cache.k.size(2), row_bytes(cache.k, cache.k.size(3)), source, from, target, to, count}));
}

void CudaDevice::do_sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out) {
  kvmesh::check(logits.size(1) < (1 << 20), "sampling: a vocabulary of {} entries; {} are possible", logits.size(1), (1 << 20) - 1);
  std::byte* host = begin_upload(rows_upload_, rows.size_bytes());
  std::copy(rows.begin(), rows.end(), reinterpret_cast<SampleRow*>(host));
  end_upload(rows_upload_, rows.size_bytes());
  const std::int64_t best = out.top_ids.defined() ? out.top_ids.size(1) : 0;
  must(cuda::sample(queue_, {logits.data<float>(), static_cast<const SampleRow*>(rows_upload_.device.raw()), out.tokens.data<std::int32_t>(),
                             out.log_probs.defined() ? out.log_probs.data<float>() : nullptr, best > 0 ? out.top_ids.data<std::int32_t>() : nullptr,
                             std::ssize(rows), logits.size(1), best}));
}

}  // namespace kvmesh::cuda
