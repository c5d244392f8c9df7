// CUDA for tests on a machine without a GPU: kvmesh's .cu files compile with the host's compiler when this folder stands where the toolkit's
// headers would. Only what kvmesh uses is here. Blocks run one after another, a block's threads as fibers that are switched at barriers;
// what is enqueued on a stream is done when somebody waits for it and not before, copies to and from the host included, so that whoever reads too
// early, or writes too early what is still to be read, gets the wrong bytes. Memory of the "device" is host memory, filled with not-a-numbers, which the host
// may not touch: a program that takes the device's memory for its own ends there.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;  // the running fiber's

namespace cuda_emulator {

/// What the running fiber knows of itself beyond those.
struct Thread {
  dim3 index;
  int warp = 0, lane = 0;
  struct Copy {
    void* to;
    const void* from;  // null: zeros
    int commit;
  };
  std::vector<Copy> copies;  // begun in the background: done when they are waited for, never before
  int commits = 0;
};
extern Thread* current;
extern void* dynamic_shared_memory;

/// Runs body() once for every thread of every block.
void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& body);
void sync_block();
void sync_warp();

/// Every lane of the warp gives `bytes` bytes (at most 32) and then sees all lanes' [32 · 32 bytes] until the next but one exchange.
const std::byte* exchange(const void* mine, std::size_t bytes);
constexpr std::size_t exchange_stride = 32;

template <typename T>
T from_lane(const std::byte* all, int lane) {
  T value;
  std::memcpy(&value, all + static_cast<std::size_t>(lane) * exchange_stride, sizeof(T));
  return value;
}

/// The device's memory, 256-byte aligned. Under AddressSanitizer, which sees accesses beyond a piece of it, the host is not kept from it.
void* allocate(std::size_t bytes);
void release(void* p);
std::size_t allocated();

/// While it lives, the device works, and its memory may be touched.
struct Working {
  Working();
  ~Working();
};

}  // namespace cuda_emulator

inline void __syncthreads() { cuda_emulator::sync_block(); }
inline int __syncthreads_or(int mine) {  // what was told before has been read by all when they meet again
  static int any;
  cuda_emulator::sync_block();
  any = 0;
  cuda_emulator::sync_block();
  any |= mine;
  cuda_emulator::sync_block();
  return any;
}
inline void __syncwarp(unsigned = 0xffffffffu) { cuda_emulator::sync_warp(); }
inline void __threadfence() {}


template <typename T>
T __shfl_sync(unsigned, T value, int lane) {
  return cuda_emulator::from_lane<T>(cuda_emulator::exchange(&value, sizeof value), lane & 31);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return __shfl_sync(mask, value, cuda_emulator::current->lane ^ lanes);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, int lanes) {
  const std::byte* all = cuda_emulator::exchange(&value, sizeof value);
  const int from = cuda_emulator::current->lane - lanes;
  return from >= 0 ? cuda_emulator::from_lane<T>(all, from) : value;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
  const std::byte* all = cuda_emulator::exchange(&vote, sizeof vote);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) votes |= static_cast<unsigned>(cuda_emulator::from_lane<bool>(all, lane)) << lane;
  return votes;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
template <typename T>
T __ldcg(const T* at) {
  return *at;
}

// No other thread runs between the two steps.
template <typename T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}

// The runtime's calls. An error is told, never made up: only a bad argument gives one.
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2 };
inline const char* cudaGetErrorString(cudaError_t e) { return e == cudaSuccess ? "no error" : e == cudaErrorInvalidValue ? "invalid argument" : "out of memory"; }

/// A graph is the launches and copies that were recorded; a stream that captures points to the one it fills.
struct EmulatedGraph {
  std::vector<std::function<void()>> nodes;
};
struct EmulatedStream {
  EmulatedGraph* capturing = nullptr;
  std::deque<std::function<void()>> waiting;
  std::uint64_t enqueued = 0, done = 0;
  void enqueue(std::function<void()> work) {
    if (capturing) return capturing->nodes.push_back(std::move(work));
    waiting.push_back(std::move(work));
    ++enqueued;
  }
  void run_until(std::uint64_t count) {
    if (done >= count) return;
    const cuda_emulator::Working working;
    for (; done < count; ++done) {
      const std::function<void()> work = std::move(waiting.front());
      waiting.pop_front();
      work();
    }
  }
};
/// How much of a stream's work an event stands for.
struct EmulatedEvent {
  EmulatedStream* stream = nullptr;
  std::uint64_t count = 0;
};
using cudaStream_t = EmulatedStream*;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = std::shared_ptr<const EmulatedGraph>*;
using cudaEvent_t = EmulatedEvent*;

enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum { cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2, cudaHostAllocDefault = 0 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return *s = new EmulatedStream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t s) {
  if (s->capturing) return cudaErrorInvalidValue;
  return s->run_until(s->enqueued), cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t s) {
  cudaStreamSynchronize(s);
  return delete s, cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return *e = new EmulatedEvent, cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t e) { return delete e, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  if (s->capturing) return cudaErrorInvalidValue;
  return *e = {s, s->enqueued}, cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t e) {
  if (e->stream) e->stream->run_until(e->count);
  return cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1, cudaSuccess; }

inline cudaError_t cudaMallocAsync(void** p, std::size_t bytes, cudaStream_t s) {
  if (s->capturing) return cudaErrorInvalidValue;
  return (*p = cuda_emulator::allocate(bytes)) ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t s) {
  s->enqueue([=] { cuda_emulator::release(p); });
  return cudaSuccess;
}
using cudaMemPool_t = void*;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t*, int) { return cudaSuccess; }
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
inline cudaError_t cudaMallocHost(void** p, std::size_t bytes) {
  if (posix_memalign(p, 256, bytes) != 0) return cudaErrorMemoryAllocation;
  return std::memset(*p, 0xff, bytes), cudaSuccess;
}
inline cudaError_t cudaFreeHost(void* p) { return std::free(p), cudaSuccess; }
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = std::size_t{1} << 30;
  *free = *total - std::min(*total, cuda_emulator::allocated());
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t s) {
  s->enqueue([=] { std::memmove(to, from, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t s) {
  s->enqueue([=] { std::memset(to, value, bytes); });
  return cudaSuccess;
}

inline cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) { return s->capturing = new EmulatedGraph, cudaSuccess; }
inline cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t* graph) { return *graph = s->capturing, s->capturing = nullptr, cudaSuccess; }
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return *exec = new std::shared_ptr<const EmulatedGraph>(std::make_shared<const EmulatedGraph>(*graph)), cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  if (s->capturing) return cudaErrorInvalidValue;
  s->enqueue([graph = *exec] {
    for (const auto& node : graph->nodes) node();
  });
  return cudaSuccess;
}

struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  std::size_t sharedMemPerBlockOptin;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {"emulated on the CPU, for tests", 9, 0, 4, 227 << 10};
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* v) { return *v = 0, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* v) { return *v = 0, cudaSuccess; }

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return bytes <= (227 << 10) ? cudaSuccess : cudaErrorInvalidValue;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeProgrammaticStreamSerialization = 6 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  struct {
    int programmaticStreamSerializationAllowed;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
template <typename... Params, typename... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args... args) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const std::size_t shared = config->dynamicSmemBytes;
  const unsigned threads = block.x * block.y * block.z;
  if (threads == 0 || threads > 1024 || threads % 32 != 0 || grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.z == 0 || grid.z > 65535) return cudaErrorInvalidValue;
  config->stream->enqueue([=] { cuda_emulator::run(grid, block, shared, [=] { kernel(static_cast<Params>(args)...); }); });
  return cudaSuccess;
}
