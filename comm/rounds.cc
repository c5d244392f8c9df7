#include "comm/rounds.h"

#include <algorithm>
#include <chrono>

namespace kvmesh {
namespace {

constexpr std::chrono::microseconds between_looks{300};  // while nothing moves: the cores are the computation's

}  // namespace

void Rounds::start(std::size_t rounds, bool thread) {
  rounds_ = rounds;
  begun_ = landed_ = 0;
  pending_.clear();
  error_ = nullptr;
  allow(0);
  if (thread) thread_ = std::jthread([this](const std::stop_token& stop) { work(stop); });
}

void Rounds::work(const std::stop_token& stop) {
  try {
    while (!stop.stop_requested()) {
      if (!advance(true)) std::this_thread::sleep_for(between_looks);
    }
  } catch (...) {
    error_ = std::current_exception();
  }
}

/// Whether a round has begun or is done.
bool Rounds::advance(bool behind) {
  if (!pending_.empty() && (!pending_.front() || pending_.front()->poll())) {
    pending_.pop_front();
    land_(landed_++, behind);
    return true;
  }
  if (pending_.size() == under_way || begun_ == std::min(rounds_, allowed_.load(std::memory_order_acquire))) return false;
  pending_.push_back(begin_(begun_++));
  return true;
}

void Rounds::stop() {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
}

void Rounds::finish() {
  stop();
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  allow(rounds_);
  while (landed_ < rounds_) {
    while (advance(false)) {
    }
    if (!pending_.empty() && pending_.front()) pending_.front()->wait();
  }
}

}  // namespace kvmesh
