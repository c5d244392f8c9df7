// The thread pool covers every index once, survives exceptions, nests, and sleeps and wakes.
#include "runtime/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

namespace kvmesh::cpu {
namespace {

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.size(), threads);
    for (const std::int64_t n : {0, 1, 2, 7, 8, 9, 1000}) {
      for (const std::int64_t grain : {0, 1, 3, 5000}) {
        std::vector<std::atomic<int>> hits(static_cast<std::size_t>(n));
        pool.parallel_for(n, grain, [&](std::int64_t begin, std::int64_t end) {
          ASSERT_LT(begin, end);
          for (std::int64_t i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
        });
        for (const auto& h : hits) ASSERT_EQ(h, 1) << "threads " << threads << ", n " << n << ", grain " << grain;
      }
    }
  }
}

TEST(ThreadPool, ManyShortLoopsBackToBack) {
  ThreadPool pool(4);
  std::atomic<std::int64_t> sum{0};
  for (int i = 0; i < 20000; ++i) {
    pool.parallel_for(5, 1, [&](std::int64_t begin, std::int64_t) { sum += begin; });
  }
  EXPECT_EQ(sum, 20000 * 10);
}

TEST(ThreadPool, WakesAfterSleeping) {
  ThreadPool pool(3);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic<int> started{0};
    // Every range waits for the others: it ends only if all three threads woke.
    pool.parallel_for(3, 1, [&](std::int64_t, std::int64_t) {
      ++started;
      while (started < 3) std::this_thread::yield();
    });
    EXPECT_EQ(started, 3);
  }
}

TEST(ThreadPool, ExceptionsReachTheCaller) {
  ThreadPool pool(3);
  std::atomic<int> ran{0};
  const auto body = [&](std::int64_t begin, std::int64_t) {
    ++ran;
    if (begin == 4) throw std::runtime_error("four");
  };
  EXPECT_THROW(pool.parallel_for(10, 1, body), std::runtime_error);
  EXPECT_EQ(ran, 10);
  EXPECT_NO_THROW(pool.parallel_for(3, 1, body));
}

TEST(ThreadPool, NestedLoopsRunInline) {
  ThreadPool pool(2);
  std::atomic<int> hits{0};
  pool.parallel_for(4, 1, [&](std::int64_t, std::int64_t) {
    pool.parallel_for(8, 1, [&](std::int64_t begin, std::int64_t end) { hits += static_cast<int>(end - begin); });
  });
  EXPECT_EQ(hits, 32);
}

}  // namespace
}  // namespace kvmesh::cpu
