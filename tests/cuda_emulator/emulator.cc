// Fibers for the threads of a block: x86-64, one stack each, switched only at barriers. And the device's memory.
#include "cuda_runtime.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_emulator {

Thread* current = nullptr;
void* dynamic_shared_memory = nullptr;

namespace {

constexpr std::size_t stack_bytes = std::size_t{256} << 10;

struct Fiber : Thread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // the sanitizer's
  bool done = false;
};

struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  int size = 0, live = 0;
  int running = 0;
  int step = 1;  // the turn goes up or down: every other launch the other way, so that no code can rely on who comes first
  bool begun = false;
  Barrier barrier;
  struct Warp {
    Barrier barrier;
    unsigned turn = 0;  // which buffer the next exchange fills
    std::byte buffers[2][32 * exchange_stride];
  };
  std::vector<Warp> warps;
  const std::function<void()>* body = nullptr;
  void* main_stack_pointer = nullptr;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  std::size_t main_stack_bytes = 0;
};
Block block;

extern "C" void cuda_emulator_switch(void** from, void* to);
asm(R"(
.text
.type cuda_emulator_switch, @function
cuda_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_emulator_switch, .-cuda_emulator_switch
)");

void arrived([[maybe_unused]] void* fake_stack, [[maybe_unused]] bool from_main) {
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  if (from_main) block.main_stack = bottom, block.main_stack_bytes = bytes;
#endif
}

// From the running fiber to fiber `to`; -1: back to the caller of run().
void switch_to(int to) {
  Fiber& from = block.fibers[static_cast<std::size_t>(block.running)];
  block.running = to;
  Fiber* next = to < 0 ? nullptr : &block.fibers[static_cast<std::size_t>(to)];
  current = next;
  if (next) threadIdx = next->index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from.done ? nullptr : &from.fake_stack, next ? next->stack : block.main_stack, next ? stack_bytes : block.main_stack_bytes);
#endif
  cuda_emulator_switch(&from.stack_pointer, next ? next->stack_pointer : block.main_stack_pointer);
  arrived(from.fake_stack, false);
}

// The next live fiber in [first, first + count) after the running one, else the next of the block.
void yield(int first, int count) {
  for (const auto& [begin, size] : {std::pair(first, count), std::pair(0, block.size)}) {
    for (int i = 1; i < size; ++i) {
      const int next = begin + (block.running - begin + block.step * i + size) % size;
      if (!block.fibers[static_cast<std::size_t>(next)].done) return switch_to(next);
    }
  }
}

void wait(Barrier& barrier, int first, int count) {
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  const unsigned generation = barrier.generation;
  for (int rounds = 0; barrier.generation == generation; ++rounds) {
    if (rounds > 1000) {  // others had the turn meanwhile
      std::fprintf(stderr, "CUDA emulator: block (%u, %u, %u), thread %d waits at a barrier that not all threads come to\n", blockIdx.x, blockIdx.y,
                   blockIdx.z, block.running);
      std::abort();
    }
    yield(first, count);
  }
}

void start() {
  arrived(nullptr, !std::exchange(block.begun, true));
  (*block.body)();
  block.fibers[static_cast<std::size_t>(block.running)].done = true;
  if (--block.live == 0) switch_to(-1);
  yield(block.running / 32 * 32, 32);
  std::abort();  // nobody returns here
}

void run_block(dim3 size) {
  block.live = block.size;
  block.barrier = {block.size, 0, 0};
  for (auto& warp : block.warps) warp.barrier = {32, 0, 0}, warp.turn = 0;
  for (int i = 0; i < block.size; ++i) {
    Fiber& f = block.fibers[static_cast<std::size_t>(i)];
    const auto t = static_cast<unsigned>(i);
    f.index = {t % size.x, t / size.x % size.y, t / (size.x * size.y)};
    f.warp = i / 32;
    f.lane = i % 32;
    f.done = false;
    f.copies.clear();
    f.commits = 0;
    auto** top = reinterpret_cast<void**>(f.stack + stack_bytes) - 1;  // as after a call: 8 mod 16
    *top = nullptr;
    *--top = reinterpret_cast<void*>(start);
    f.stack_pointer = top - 6;  // six registers of no meaning
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(f.stack + stack_bytes - 4096, 4096);  // the frames that the last thread on this stack did not leave: start's and what it called last
#endif
  }
  block.running = block.step > 0 ? 0 : block.size - 1;
  block.begun = false;
  Fiber& first = block.fibers[static_cast<std::size_t>(block.running)];
  current = &first;
  threadIdx = current->index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block.main_fake_stack, first.stack, stack_bytes);
#endif
  cuda_emulator_switch(&block.main_stack_pointer, first.stack_pointer);
  arrived(block.main_fake_stack, false);
}

}  // namespace

void run(dim3 grid, dim3 size, std::size_t shared_bytes, const std::function<void()>& body) {
  block.size = static_cast<int>(size.x * size.y * size.z);
  block.body = &body;
  block.step = -block.step;
  blockDim = size;
  gridDim = grid;
  while (std::ssize(block.fibers) < block.size) {
    void* stack = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack == MAP_FAILED) std::abort();
    block.fibers.emplace_back().stack = static_cast<char*>(stack);
  }
  block.warps.resize(static_cast<std::size_t>(block.size / 32));
  if (posix_memalign(&dynamic_shared_memory, 128, std::max<std::size_t>(shared_bytes, 1)) != 0) std::abort();
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        std::memset(dynamic_shared_memory, 0xff, shared_bytes);  // not-a-numbers
        blockIdx = {x, y, z};
        run_block(size);
      }
    }
  }
  std::free(dynamic_shared_memory);
}

void sync_block() { wait(block.barrier, 0, block.size); }

void sync_warp() { wait(block.warps[static_cast<std::size_t>(current->warp)].barrier, current->warp * 32, 32); }

const std::byte* exchange(const void* mine, std::size_t bytes) {
  Block::Warp& warp = block.warps[static_cast<std::size_t>(current->warp)];
  // All lanes see the same turn: whoever completes the barrier changes it before the others go on.
  std::byte* buffer = warp.buffers[warp.turn];
  std::memcpy(buffer + static_cast<std::size_t>(current->lane) * exchange_stride, mine, bytes);
  if (warp.barrier.arrived == warp.barrier.expected - 1) warp.turn ^= 1;
  sync_warp();
  return buffer;
}

#if defined(__SANITIZE_ADDRESS__)
namespace {
std::map<void*, std::size_t> pieces;
}

void* allocate(std::size_t bytes) {
  void* p = nullptr;
  if (posix_memalign(&p, 256, bytes) != 0) return nullptr;
  pieces[p] = bytes;
  return std::memset(p, 0xff, bytes);
}

void release(void* p) {
  pieces.erase(p);
  std::free(p);
}

Working::Working() = default;
Working::~Working() = default;
#else
namespace {

constexpr std::size_t room = std::size_t{1} << 36, page = 4096;

std::byte* const memory = [] {
  void* p = mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) std::abort();
  return static_cast<std::byte*>(p);
}();
std::size_t used = 0;  // of it
std::map<void*, std::size_t> pieces;
std::multimap<std::size_t, void*> spare;  // by size
int working = 0;

std::size_t whole_pages(std::size_t bytes) { return (bytes + page - 1) / page * page; }

void protect(void* p, std::size_t bytes, int protection) {
  if (bytes > 0 && mprotect(p, bytes, protection) != 0) std::abort();
}

}  // namespace

void* allocate(std::size_t asked) {
  const std::size_t bytes = whole_pages(asked);
  void* p = memory + used;
  if (const auto found = spare.find(bytes); found != spare.end()) {
    p = found->second;
    spare.erase(found);
  } else {
    if (bytes > room - used) return nullptr;
    used += bytes;
  }
  pieces[p] = asked;
  protect(p, bytes, PROT_READ | PROT_WRITE);
  std::memset(p, 0xff, bytes);
  if (working == 0) protect(p, bytes, PROT_NONE);
  return p;
}

void release(void* p) {
  const auto piece = pieces.find(p);
  const std::size_t bytes = whole_pages(piece->second);
  madvise(p, bytes, MADV_DONTNEED);
  spare.emplace(bytes, p);
  pieces.erase(piece);
}

Working::Working() {
  if (working++ == 0) protect(memory, used, PROT_READ | PROT_WRITE);
}

Working::~Working() {
  if (--working == 0) protect(memory, used, PROT_NONE);
}
#endif

std::size_t allocated() {
  std::size_t bytes = 0;
  for (const auto& [p, size] : pieces) bytes += size;
  return bytes;
}

}  // namespace cuda_emulator
