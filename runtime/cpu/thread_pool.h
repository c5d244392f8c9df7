// A fixed team of threads that shares loops out. Which thread runs which part is left to chance, so a body must compute the
// same bits whoever runs it.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace kvmesh::cpu {

class ThreadPool {
 public:
  /// `threads` ≥ 1 counts the caller, so threads - 1 are started.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls body(begin, end) for ranges that together cover [0, n) once; returns when all are done, with the first exception
  /// that a body threw. A range has `grain` items or, at the end, fewer; grain 0: n divided evenly by the threads; one thread: all at once. One caller
  /// at a time; within a body the loop runs on the calling thread alone. The caller waits only for threads that took a range.
  template <typename Body>
  void parallel_for(std::int64_t n, std::int64_t grain, const Body& body) {
    run(n, grain, [](const void* b, std::int64_t begin, std::int64_t end) { (*static_cast<const Body*>(b))(begin, end); }, &body);
  }
  template <typename Body>
  void parallel_for(std::int64_t n, const Body& body) {
    parallel_for(n, 0, body);
  }

 private:
  using Call = void (*)(const void* body, std::int64_t begin, std::int64_t end);

  void run(std::int64_t n, std::int64_t grain, Call call, const void* body);
  void work();
  bool take_one();

  // The loop in progress: written by the caller before ticket_ is, read only by a thread that took a range of it.
  Call call_ = nullptr;
  const void* body_ = nullptr;
  std::int64_t n_ = 0, grain_ = 0;
  std::mutex error_mutex_;
  std::exception_ptr error_;

  alignas(64) std::atomic<std::uint64_t> ticket_{0};  // generation << 32 | ranges not yet taken
  alignas(64) std::atomic<std::int32_t> unfinished_{0};
  alignas(64) std::atomic<std::int32_t> epoch_{0};  // idle threads sleep on it
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

/// How many CPUs this thread may run on.
int available_cpus();

}  // namespace kvmesh::cpu
