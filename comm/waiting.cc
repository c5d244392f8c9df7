// Looking, the roll call, and giving up.
#include "comm/waiting.h"

#include <sched.h>

#include <algorithm>
#include <thread>
#include <utility>

namespace kvmesh {
namespace {

constexpr int looks_before_yield = 100;       // about 10 µs: a partner on a core of its own answers within that
constexpr Seconds yield_for{0.001};           // then the core goes to whoever wants it …
constexpr Seconds longest_sleep{0.001};       // … and then a sixteenth of the time waited so far is slept, this at most
constexpr double roll_call_after = 0.75;      // of the deadline

// A roll call is the number of the asker's collective; the answer repeats it, so that answers to an earlier call do not count. These
// few bytes leave at once, or the job is about to end: nobody waits for their requests.
constexpr int ask_tag = Waiting::data_tag + 1, answer_tag = ask_tag + 1;

}  // namespace

Waiting::Waiting(Ranks ranks, std::shared_ptr<Deadline> deadline) : deadline_(std::move(deadline)) {
  int world_rank = 0;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &world_rank), "MPI_Comm_rank");
  check_mpi(ranks.which == Ranks::of_color ? MPI_Comm_split(MPI_COMM_WORLD, ranks.color, world_rank, &comm_)
            : ranks.which == Ranks::all    ? MPI_Comm_dup(MPI_COMM_WORLD, &comm_)
                                           : MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm_),
            "making a communicator");
  check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
  check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  world_ranks_.resize(static_cast<std::size_t>(size_));
  check_mpi(MPI_Allgather(&world_rank, 1, MPI_INT, world_ranks_.data(), 1, MPI_INT, comm_), "MPI_Allgather");
}

Waiting::~Waiting() {
  if (!deadline_->passed) MPI_Comm_free(&comm_);
}

void Waiting::start(const char* what) {
  if (deadline_->passed) fail(Fault::rank, "{}: rank {} cannot go on after it gave up waiting for another rank", what, world_ranks_[static_cast<std::size_t>(rank_)]);
  ++started_;
}

// Rank 0 of n is a second (or a quarter of the deadline) less patient, the others by their place in between, so that one rank can report
// and end the job before all the others say the same. Between many ranks that is too little: who was asked by a lower rank leaves that one
// a second.
void Waiting::until(const char* what, const std::function<Seen()>& look) {
  const Seconds deadline = deadline_->seconds, spread = std::min(Seconds{1}, deadline / 4);
  Seconds patience = deadline - spread * (size_ - 1 - rank_) / size_;
  const Seconds roll_call = roll_call_after * patience;
  bool roll_called = false;
  Seen seen = Seen::others;
  for (int looks = 0; looks < looks_before_yield && seen != Seen::done; ++looks) seen = look();
  for (WaitClock clock(WaitClock::Clock::now()); seen != Seen::done; seen = look()) {
    if (seen == Seen::own_work) clock = WaitClock(WaitClock::Clock::now());
    const Seconds waited = clock.look(WaitClock::Clock::now());
    if (waited > roll_call && !std::exchange(roll_called, true)) call_the_roll();
    if (waited > patience) give_up(what, waited);
    if (waited > yield_for && answer_roll_calls()) patience = deadline + spread;
    waited < yield_for ? void(sched_yield()) : std::this_thread::sleep_for(std::min(longest_sleep, waited / 16));
  }
}

void Waiting::send(const std::int64_t& number, int to, int tag) {
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Isend(&number, 1, MPI_INT64_T, to, tag, comm_, &request), "MPI_Isend");
  check_mpi(MPI_Request_free(&request), "MPI_Request_free");
}

void Waiting::call_the_roll() {
  answered_.assign(static_cast<std::size_t>(size_), false);
  answered_[static_cast<std::size_t>(rank_)] = true;
  asked_ = started_;
  for (int r = 0; r < size_; ++r) {
    if (r != rank_) send(asked_, r, ask_tag);
  }
}

/// Returns whether a lower rank has asked.
bool Waiting::answer_roll_calls() {
  for (bool lower = false;;) {
    int there = 0;
    MPI_Status status;
    check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, ask_tag, comm_, &there, &status), "MPI_Iprobe");
    if (!there) check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, answer_tag, comm_, &there, &status), "MPI_Iprobe");
    if (!there) return lower;
    std::int64_t& number = answers_.emplace_back();  // stays where it is: it may be on its way for a while
    check_mpi(MPI_Recv(&number, 1, MPI_INT64_T, status.MPI_SOURCE, status.MPI_TAG, comm_, MPI_STATUS_IGNORE), "MPI_Recv");
    if (status.MPI_TAG == ask_tag) {
      send(number, status.MPI_SOURCE, answer_tag);
      lower = lower || status.MPI_SOURCE < rank_;
    } else if (number == asked_) {
      answered_[static_cast<std::size_t>(status.MPI_SOURCE)] = true;
    }
  }
}

void Waiting::give_up(const char* what, Seconds waited) {
  deadline_->passed = true;
  std::vector<int> silent;
  for (int r = 0; r < size_; ++r) {
    if (!answered_[static_cast<std::size_t>(r)]) silent.push_back(world_ranks_[static_cast<std::size_t>(r)]);
  }
  const int own = world_ranks_[static_cast<std::size_t>(rank_)];
  int all = 0;
  check_mpi(MPI_Comm_size(MPI_COMM_WORLD, &all), "MPI_Comm_size");
  if (silent.empty()) fail(Fault::rank, "{}: rank {} of {} waited {:.1f} s, and all others wait as well: the network is slow or broken", what, own, all, waited.count());
  fail(Fault::rank, "{}: rank {} of {} waited {:.1f} s for rank {}, which does not answer: dead, stopped, cut off, or still computing", what, own, all,
       waited.count(), fmt::join(silent, ", "));
}

}  // namespace kvmesh
