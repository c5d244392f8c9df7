// Collectives that go on behind the back of the caller's computations: rounds 0, 1, … begin in this order on all ranks, each once the caller allows it.
#pragma once

#include "comm/communicator.h"

#include <atomic>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

namespace kvmesh {

class Rounds {
 public:
  static constexpr std::size_t under_way = 2;  ///< at most: a round's memory is free again when the second one after it begins

  /// Begins a round (null: there is nothing to wait for), and takes in what a finished one has brought. They are called in order, by one thread at a time; `behind`: while the caller computes.
  using Begin = std::function<std::unique_ptr<Pending>(std::size_t round)>;
  using Land = std::function<void(std::size_t round, bool behind)>;
  Rounds(Begin begin, Land land) : begin_(std::move(begin)), land_(std::move(land)) {}
  /// The object that the functions belong to declares this as its last member.
  ~Rounds() { stop(); }
  Rounds(const Rounds&) = delete;
  Rounds& operator=(const Rounds&) = delete;

  /// Until finish() the caller must not communicate. With `thread`, one of its own moves the rounds on meanwhile; else they wait for finish().
  void start(std::size_t rounds, bool thread);
  /// The first so many rounds may begin.
  void allow(std::size_t rounds) { allowed_.store(rounds, std::memory_order_release); }
  /// Allows all, and returns when they are done. Here the communicator's deadline counts; a rank that still computes answers no roll call.
  void finish();

 private:
  void stop();
  void work(const std::stop_token& stop);
  bool advance(bool behind);

  Begin begin_;
  Land land_;
  std::size_t rounds_ = 0, begun_ = 0, landed_ = 0;
  std::atomic<std::size_t> allowed_{0};
  std::deque<std::unique_ptr<Pending>> pending_;
  std::exception_ptr error_;  // of the thread
  std::jthread thread_;
};

}  // namespace kvmesh
