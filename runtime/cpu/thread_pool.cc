// Ranges are taken by compare-and-swap on one word; idle threads spin for some microseconds, then sleep on a futex.
#include "runtime/cpu/thread_pool.h"

#include "runtime/check.h"

#include <immintrin.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <utility>

namespace kvmesh::cpu {
namespace {

// Long enough for the gap between two operations of a forward pass, short enough to leave the core to another rank.
constexpr std::chrono::microseconds spin_time{20};

thread_local bool inside_body = false;

/// Spins until `ready()` or spin_time is over.
template <typename Ready>
bool spin(const Ready& ready) {
  const auto deadline = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      _mm_pause();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return ready();
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  check(threads >= 1 && threads <= 4096, "a thread pool has 1 to 4096 threads, not {}", threads);
  workers_.reserve(static_cast<std::size_t>(threads - 1));
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::run(std::int64_t n, std::int64_t grain, Call call, const void* body) {
  if (n <= 0) return;
  if (grain <= 0) grain = (n + size() - 1) / size();
  grain = std::max(grain, n / std::numeric_limits<std::int32_t>::max() + 1);
  const std::int64_t ranges = (n + grain - 1) / grain;
  if (workers_.empty() || ranges == 1 || inside_body) {
    call(body, 0, n);
    return;
  }
  call_ = call;
  body_ = body;
  n_ = n;
  grain_ = grain;
  unfinished_.store(static_cast<std::int32_t>(ranges), std::memory_order_relaxed);
  const std::uint64_t generation = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
  ticket_.store(generation << 32 | static_cast<std::uint64_t>(ranges), std::memory_order_release);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  while (take_one()) {
  }
  if (!spin([this] { return unfinished_.load(std::memory_order_acquire) == 0; })) {
    for (std::int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) unfinished_.wait(left, std::memory_order_acquire);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

bool ThreadPool::take_one() {
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  do {
    if (static_cast<std::uint32_t>(ticket) == 0) return false;
  } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire));
  const std::int64_t ranges = (n_ + grain_ - 1) / grain_;
  const std::int64_t begin = (ranges - static_cast<std::int64_t>(static_cast<std::uint32_t>(ticket))) * grain_;
  inside_body = true;
  try {
    call_(body_, begin, std::min(begin + grain_, n_));
  } catch (...) {
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
  inside_body = false;
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
  return true;
}

void ThreadPool::work() {
  std::int32_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    while (take_one()) {
    }
    if (!spin([&] { return epoch_.load(std::memory_order_acquire) != seen; })) epoch_.wait(seen, std::memory_order_acquire);
    seen = epoch_.load(std::memory_order_acquire);
  }
}

int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace kvmesh::cpu
