// What a GPT needs of a device: memory, packed weights, and a handful of operations. One class a device implements them
// (runtime/cpu/, runtime/cuda/); shapes are checked once, here. Rows are independent: the bits of one row's
// result depend on that row and the weights alone, never on how many rows or segments a call holds, on threads, or
// on where in the ring the row lies.
#pragma once

#include "runtime/structs.h"
#include "runtime/tensor.h"

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace kvmesh {

/// A weight matrix [K, N] in the layout that the device's GEMM reads, and what is added to its products. `data` may lie in memory shared by several ranks.
struct Weight {
  std::int64_t k = 0, n = 0;
  DType dtype = DType::f32;
  Tensor data{};  // u8 [Device::weight_bytes(dtype, k, n, quantize)]
  Tensor bias{};  // f32 [n]; undefined: none
  Quantize quantize = Quantize::none;
};

/// How a row is normed: x / sqrt(mean(x²) + eps) (RMSNorm) or, `centred`, (x - mean) / sqrt(variance + eps) (LayerNorm), then · weight + bias where
/// these are there.
struct Norm {
  float eps = 0;
  bool centred = false;
  Tensor weight = {}, bias = {};  // f32 [D]; undefined: none
};

/// How query and key heads are normed before RoPE.
struct HeadNorm {
  float eps = 0;
  bool off = false;         ///< not at all
  Tensor q = {}, k = {};    // f32 [h], weights of every query and key head; both or none
};

/// One layer's keys and values, the ring: [places, kv_heads, size, head_dim], keys after norm and RoPE.
struct LayerCache {
  Tensor k, v;
};

/// The tokens and runs of one pass, where the device's kernels read them. Made by Device::prepare.
struct Pass {
  std::span<const Segment> segments;  ///< the caller's
  Tensor ids;            // i32 [T]
  Tensor wanted;         // i32 [W]
  Tensor device_runs;    // u8, segments.size() Segments; undefined where kernels read the host's memory, as the next
  Tensor run_of;         // i32 [T]: which segment a packed row belongs to, -1: none
};

/// What a device can do at most, measured on it: the ceilings that a benchmark is held against.
struct Limits {
  double flops_per_s = 0;  ///< multiply and add count as two
  double bytes_per_s = 0;  ///< reading memory that no cache holds
};

struct SampleOut {
  Tensor tokens;     // i32 [R]
  Tensor log_probs;  // f32 [R, 1 + N]: of the token (or the forced one), then of the N best; undefined tensor: not computed
  Tensor top_ids;    // i32 [R, N] the N best, best first, ties by lower id; undefined when N = 0
};

class TrainOps;

/// A tensor on its way to the host. May be let go of before it has come.
class Download {
 public:
  virtual ~Download() = default;
  /// Waits for it. The elements, in the host's memory, for as long as this object and the tensor that it copies live.
  virtual const Tensor& wait() = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  Device() = default;
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  /// For people, e.g. "cpu (avx512_bf16, 2 threads)".
  virtual std::string describe() const = 0;

  /// What a result's bits depend on: kind of device and instruction set or architecture, e.g. "cpu/avx512_bf16". Outputs that
  /// differ in it are not compared or continued.
  virtual std::string kind() const = 0;

  /// Measures for about a second; nothing else should run on the device meanwhile. flops_per_s is that of matrix products in `dtype`. `meet` is called
  /// before every timed run: ranks that share a machine's memory begin it together, and each measures its share.
  virtual Limits measure_limits(DType dtype, const std::function<void()>& meet) = 0;

  /// For comparisons: what enqueues out [rows, N] = x [rows, K] · w [K, N] of plain row-major matrices as the device's library does it best, with no promise about bits. The
  /// tensors' shapes and dtypes are those of the later calls. Empty: there is no such library.
  using Product = std::function<void(const Tensor& x, const Tensor& w, const Tensor& out)>;
  virtual Product library_product(const Tensor& x, const Tensor& w, const Tensor& out);

  /// Names what the host does from here to end_range(), for a profiler that watches; ranges nest.
  virtual void begin_range([[maybe_unused]] const char* name) {}
  virtual void end_range() {}

  /// Where the operations take their turn: they may return before they are done, in this order (a cudaStream_t); null: they return when they are done.
  virtual void* queue() const { return nullptr; }

  /// Bytes that are free in the device's own memory; -1: it works in the host's.
  virtual std::int64_t free_bytes() const { return -1; }

  /// What training needs besides (runtime/train_ops.h); owned by the device.
  virtual TrainOps& train_ops() = 0;

  /// Uninitialized memory of the device.
  virtual Tensor empty(DType dtype, Shape shape) = 0;
  /// Between host and device or within the device; returns when `source` may be changed and `target` read.
  virtual void copy(const Tensor& source, const Tensor& target) = 0;
  /// Begins to copy the device's `source`, as what has been enqueued so far leaves it, to the host. On a device with a queue it returns at once.
  virtual std::unique_ptr<Download> download(const Tensor& source);

  /// The same bytes where the device's operations read them: `host` itself or, on a device with memory of its own, a copy.
  virtual Tensor resident(const Tensor& host) = 0;
  /// Memory of the device for what `host` holds, which copy() takes from one to the other: `host` itself or, on a device with memory of its own,
  /// another tensor, uninitialized.
  virtual Tensor counterpart(const Tensor& host) = 0;
  /// For passes over tokens that lie as `segments` say: ids [T] of them, or none, and `wanted` rows. With `from`, i32 [N] of the device's, ids are where in it
  /// the tokens are: what has been enqueued so far may still have to write them. The spans must outlive the pass, which is valid until the next is prepared.
  Pass prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const Tensor& from = {});

  /// What a pass enqueues, besides the pass itself: the serial numbers of all that it works on, and where its result goes.
  struct Work {
    std::uint64_t model = 0, cache = 0, workspace = 0;
    const void* out = nullptr;
    std::int64_t slots = 0;  ///< of the cache's rings
    auto operator<=>(const Work&) const = default;
  };
  /// `body` enqueues the operations of `pass` and nothing else. A device may record them and, for a later pass of as many single tokens and the same
  /// work, repeat the record instead of asking `body`.
  virtual void run([[maybe_unused]] const Pass& pass, [[maybe_unused]] const Work& work, const std::function<void()>& body) { body(); }

  /// Bytes of a packed [k, n] weight for rows of `dtype`; the packed layout starts at 64-byte aligned addresses.
  std::size_t weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize = Quantize::none) const;
  /// Packs host rows `source` [k, n] (f32 or bf16, row-major) into `target`, host memory of weight_bytes(dtype, k, n, quantize) bytes. int8: column j becomes
  /// scale[j] = max |source[:, j]| / 127 and integers source / scale, rounded to nearest, ties to even, in float32; a column of zeros stays zeros.
  void pack_weight(const Tensor& source, DType dtype, void* target, Quantize quantize = Quantize::none) const;

  /// out [T, D] = table[ids[t]]; ids i32 [T], each within table [V, D] (else an Error on the CPU and not-a-numbers in out elsewhere); dtypes of table and
  /// out are equal.
  void gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out);
  /// x [T, D] += table [P, D][position - start], the position's place in its row, which must be below P; dtypes of table and x are equal.
  void add_positions(const Tensor& table, const Pass& pass, const Tensor& x);
  /// out [T, D] = x as `norm` says, computed in float32 and rounded once.
  void norm(const Tensor& x, const Norm& norm, const Tensor& out);
  /// out [T, N] = epilogue(x [T, K] · w [K, N] + bias); sums in float32 in an order fixed by K alone. x has w's dtype; out has it
  /// too, or is f32. `cap` > 0 is soft_cap's. Of integers: the sums with the integers, then · scale.
  void linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap = 0) { linear(x, w, epilogue, out, cap, 0, w.n); }
  /// The same with out [T, width] wider than the weight: its columns [column, column + N); the others are not touched.
  void linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap, std::int64_t column, std::int64_t width);
  /// Columns [begin, end) of w as a weight of their own, in w's memory; `begin` is a multiple of column_unit, and w holds no integers.
  Weight columns(const Weight& w, std::int64_t begin, std::int64_t end) const;
  static constexpr std::int64_t column_unit = 64;  ///< columns of a packed weight that begin at a multiple of it lie behind those before them
  /// out [T, F] = silu(x[:, :F]) · x[:, F:] of x [T, 2·F], silu(x) = x / (1 + e^-x); in float32, rounded once. Source: Shazeer, "GLU Variants" (2020).
  void swiglu(const Tensor& x, const Tensor& out);
  /// From qkv [T, (H + 2·K)·h] (all query heads, then key heads, then value heads): q and k normed per head as `norm` says; RoPE'd by
  /// rope [≥ size, h] (cos of h/2 angles, then sin; row = position - start) unless it is undefined; q [T, H·h] out, k and v into the ring.
  void norm_rope_append(const Tensor& qkv, const Pass& pass, const Tensor& rope, const HeadNorm& norm, const Tensor& q, const LayerCache& cache);
  /// out [T, H·h] = softmax(q·k / sqrt(h))·v over the row's own keys start … position, and with window ≥ 0 only those from
  /// position - window on. Query head i reads key head i / (H / K). Call after norm_rope_append of the same segments.
  void attention(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out);
  /// Copies `count` positions of keys and values from (source, from) to (target, to), with the ring's wrap on both sides.
  void copy_rows(const LayerCache& cache, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to, std::int64_t count);
  /// logits f32 [R, V] → out, rows[r] for row r. Contract, sections 4 and 5.
  void sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out);

 private:
  virtual Pass do_prepare(std::span<const std::int32_t> ids, std::span<const Segment> segments, std::span<const std::int32_t> wanted, const Tensor& from) = 0;
  virtual std::size_t do_weight_bytes(DType dtype, std::int64_t k, std::int64_t n, Quantize quantize) const = 0;
  virtual void do_pack_weight(const Tensor& source, DType dtype, Quantize quantize, void* target) const = 0;
  virtual void do_gather_rows(const Tensor& table, const Tensor& ids, const Tensor& out) = 0;
  virtual void do_add_positions(const Tensor& table, const Pass& pass, const Tensor& x) = 0;
  virtual void do_norm(const Tensor& x, const Norm& norm, const Tensor& out) = 0;
  /// To columns [column, column + w.n) of out.
  virtual void do_linear(const Tensor& x, const Weight& w, Epilogue epilogue, const Tensor& out, float cap, std::int64_t column) = 0;
  virtual void do_swiglu(const Tensor& x, const Tensor& out) = 0;
  virtual void do_norm_rope_append(const Tensor& qkv, const Pass& pass, const Tensor& rope, const HeadNorm& norm, const Tensor& q, const LayerCache& cache) = 0;
  virtual void do_attention(const Tensor& q, const Pass& pass, const LayerCache& cache, std::int64_t window, const Tensor& out) = 0;
  virtual void do_copy_rows(const LayerCache& cache, std::int32_t source, std::int64_t from, std::int32_t target, std::int64_t to, std::int64_t count) = 0;
  virtual void do_sample(const Tensor& logits, std::span<const SampleRow> rows, const SampleOut& out) = 0;
};

/// Whose attention a device uses. A row's bits are those of the row alone with the device's own kernels; with cuDNN they may depend on its company and its place in the
/// ring, so that `automatic` takes the device's own.
enum class Attention { automatic, own, cudnn };

/// A range of a profiler's, as long as this lives.
class ProfilerRange {
 public:
  ProfilerRange(Device& device, const char* name) : device_(device) { device_.begin_range(name); }
  ~ProfilerRange() { device_.end_range(); }
  ProfilerRange(const ProfilerRange&) = delete;
  ProfilerRange& operator=(const ProfilerRange&) = delete;

 private:
  Device& device_;
};

struct DeviceOptions {
  int threads = 0;  ///< CPU threads of this rank; 0: as many as it may run on
  int gpu = 0;      ///< which of the GPUs that this process sees
  Attention attention = Attention::automatic;
};

/// 1, 2, …: a number that nothing else in this process has.
std::uint64_t serial_number();

/// The one factory. kind: "cpu", "cuda", or "auto" (cuda where it is compiled in and a GPU answers, else cpu).
std::unique_ptr<Device> make_device(std::string_view kind, const DeviceOptions& options);

/// The CUDA versions of this build and machine, and cuDNN's; "not compiled in".
std::string cuda_versions();
std::string cudnn_versions();

}  // namespace kvmesh
