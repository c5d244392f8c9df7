// How a rank waits for the others: it looks again and again, within a deadline, and blocks nowhere. Shortly before the deadline it calls
// the roll: ranks that wait as well answer, so that the error names those that do not. For the .cc files of this folder, as MPI's header is.
#pragma once

#include "comm/deadline.h"
#include "comm/mpi.h"

#include <mpi.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

namespace kvmesh {

class Waiting {
 public:
  enum class Seen {
    own_work,  ///< this rank's own device has not come that far, or something has just come in: the wait begins anew, and roll calls are not answered
    others,    ///< it is the others' turn
    done,
  };
  static constexpr int data_tag = 0;

  /// Collective, as MPI builds a communicator of its own for it: comm(). Its point-to-point messages are the roll calls', but for those with data_tag.
  Waiting(Ranks ranks, std::shared_ptr<Deadline> deadline);
  ~Waiting();
  Waiting(const Waiting&) = delete;
  Waiting& operator=(const Waiting&) = delete;

  MPI_Comm comm() const { return comm_; }
  int rank() const { return rank_; }
  int size() const { return size_; }
  bool given_up() const { return deadline_->passed; }
  /// Something was begun that nobody will wait for: the job can only be ended.
  void abandon() { deadline_->passed = true; }

  /// Before each collective: an Error if this rank has given up on another one.
  void start(const char* what);
  /// Until `look` has seen that `what` is done. Throws Error(Fault::rank) when the deadline has passed.
  void until(const char* what, const std::function<Seen()>& look);

 private:
  void send(const std::int64_t& number, int to, int tag);
  void call_the_roll();
  bool answer_roll_calls();
  [[noreturn]] void give_up(const char* what, Seconds waited);

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::vector<int> world_ranks_;          // [size]: what errors call the ranks
  std::shared_ptr<Deadline> deadline_;
  std::int64_t started_ = 0, asked_ = 0;  // collectives; the one that was last asked about
  std::vector<bool> answered_;            // [ranks], to that
  std::deque<std::int64_t> answers_;      // roll calls' messages
};

}  // namespace kvmesh
