// Collectives in host memory. Every MPI call here returns at once; waiting is done by wait(), which looks at the deadline. Shortly before
// that, a waiting rank calls the roll: ranks that wait as well answer, so that the error names those that do not.
#include "comm/mpi.h"

#include <mpi.h>
#include <sched.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <thread>
#include <utility>
#include <vector>

namespace kvmesh {
namespace {

constexpr int looks_before_yield = 100;       // about 10 µs: a partner on a core of its own answers within that
constexpr Seconds yield_for{0.001};           // then the core goes to whoever wants it …
constexpr Seconds longest_sleep{0.001};       // … and then a sixteenth of the time waited so far is slept, this at most
constexpr double roll_call_after = 0.75;      // of the deadline
constexpr std::int64_t fold_bytes = 1 << 20;  // what all_reduce gathers at a time, over all ranks

/// a ← a ∘ b. NaN wins, whichever side it is on.
template <typename T>
void fold(Reduce op, std::span<T> a, const T* b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    switch (op) {
      case Reduce::sum:
        if constexpr (std::is_integral_v<T>) {
          using U = std::make_unsigned_t<T>;
          a[i] = static_cast<T>(static_cast<U>(a[i]) + static_cast<U>(b[i]));
        } else {
          a[i] += b[i];
        }
        break;
      case Reduce::min: a[i] = b[i] < a[i] || b[i] != b[i] ? b[i] : a[i]; break;
      case Reduce::max: a[i] = b[i] > a[i] || b[i] != b[i] ? b[i] : a[i]; break;
    }
  }
}

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(Ranks ranks, std::shared_ptr<Deadline> deadline, std::int64_t piece) : deadline_(std::move(deadline)), piece_(piece) {
    check(0 < piece && piece <= std::numeric_limits<int>::max(), "an MPI message cannot have pieces of {} bytes", piece);
    check_mpi(ranks == Ranks::all ? MPI_Comm_dup(MPI_COMM_WORLD, &comm_)
                                  : MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &comm_),
              "making a communicator");
    check_mpi(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    check_mpi(MPI_Comm_rank(comm_, &rank_), "MPI_Comm_rank");
    check_mpi(MPI_Comm_size(comm_, &size_), "MPI_Comm_size");
  }
  ~MpiCommunicator() override {
    if (!deadline_->passed) MPI_Comm_free(&comm_);
  }

  int rank() const override { return rank_; }
  int size() const override { return size_; }

  void barrier() override {
    MPI_Request request = start("barrier");
    check_mpi(MPI_Ibarrier(comm_, &request), "MPI_Ibarrier");
    wait("barrier", request, {});
  }

 private:
  void do_all_gather(const Tensor& in, std::span<const std::int64_t> counts, const Tensor& out) override {
    constexpr const char* what = "all_gather";
    if (out.bytes() == 0) return;
    const auto width = static_cast<std::int64_t>(size_of(out.dtype()));
    const Tensor offsets = host_tensor(DType::i32, {2, size_});  // bytes of each rank, bytes before it
    auto* const to = static_cast<std::byte*>(out.raw());
    const bool whole = static_cast<std::int64_t>(out.bytes()) <= piece_;
    std::int64_t before = 0;
    for (int r = 0; r < size_; ++r) {
      const std::int64_t bytes = counts[static_cast<std::size_t>(r)] * width;
      if (r == rank_ && bytes > 0) std::memmove(to + before, in.raw(), static_cast<std::size_t>(bytes));
      if (whole) {
        offsets.data<std::int32_t>()[r] = static_cast<int>(bytes);
        offsets.data<std::int32_t>()[size_ + r] = static_cast<int>(before);
      } else {
        broadcast_bytes(what, out, to + before, bytes, r);
      }
      before += bytes;
    }
    if (!whole) return;
    MPI_Request request = start(what);
    const int* sizes = offsets.data<std::int32_t>();
    check_mpi(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, to, sizes, sizes + size_, MPI_BYTE, comm_, &request), "MPI_Iallgatherv");
    wait(what, request, {out, offsets});
  }

  void do_broadcast(const Tensor& inout, int root) override {
    broadcast_bytes("broadcast", inout, static_cast<std::byte*>(inout.raw()), static_cast<std::int64_t>(inout.bytes()), root);
  }

  /// [data, data + bytes) lies in `memory`.
  void broadcast_bytes(const char* what, const Tensor& memory, std::byte* data, std::int64_t bytes, int root) {
    for (std::int64_t done = 0; done < bytes; done += piece_) {
      MPI_Request request = start(what);
      check_mpi(MPI_Ibcast(data + done, static_cast<int>(std::min(piece_, bytes - done)), MPI_BYTE, root, comm_, &request), "MPI_Ibcast");
      wait(what, request, {memory});
    }
  }

  void do_all_reduce(const Tensor& inout, Reduce op) override {
    switch (inout.dtype()) {
      case DType::i32: return reduce(inout.span<std::int32_t>(), op);
      case DType::i64: return reduce(inout.span<std::int64_t>(), op);
      case DType::u64: return reduce(inout.span<std::uint64_t>(), op);
      case DType::f32: return reduce(inout.span<float>(), op);
      default: return reduce(inout.span<double>(), op);
    }
  }

  /// MPI only recommends that MPI_Allreduce sums in one order, so the operands are gathered and every rank folds them itself.
  template <typename T>
  void reduce(std::span<T> inout, Reduce op) {
    const std::size_t chunk = std::max<std::size_t>(1, fold_bytes / sizeof(T) / static_cast<std::size_t>(size_));
    const Tensor operands = host_tensor(DTypeOf<T>::value, {size_, static_cast<std::int64_t>(std::min(chunk, inout.size()))});
    for (std::size_t done = 0; done < inout.size(); done += chunk) {
      const std::span<T> part = inout.subspan(done, std::min(chunk, inout.size() - done));
      const auto n = static_cast<std::int64_t>(part.size());
      const Tensor mine({}, part.data(), DTypeOf<T>::value, {n});
      all_gather(mine, operands.view({operands.numel()}).slice(0, size_ * n).view({size_, n}));
      const T* operand = operands.data<T>();
      std::copy_n(operand, part.size(), part.data());
      for (int r = 1; r < size_; ++r) fold(op, part, operand + r * n);
    }
  }

  MPI_Request start(const char* what) {
    if (deadline_->passed) fail(Fault::rank, "{}: rank {} cannot go on after it gave up waiting for another rank", what, rank_);
    ++started_;
    return MPI_REQUEST_NULL;
  }

  /// Until `request` is done or the deadline has passed. Rank 0 of n is a second (or a quarter of the deadline) less patient, the
  /// others by their place in between, so that one rank can report and end the job before all the others say the same. Between many
  /// ranks that is too little: who was asked by a lower rank leaves that one a second.
  void wait(const char* what, MPI_Request& request, std::initializer_list<Tensor> buffers) {
    const Seconds deadline = deadline_->seconds, spread = std::min(Seconds{1}, deadline / 4);
    Seconds patience = deadline - spread * (size_ - 1 - rank_) / size_;
    const Seconds roll_call = roll_call_after * patience;
    bool roll_called = false;
    int done = 0;
    for (int look = 0; look < looks_before_yield && !done; ++look) check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
    for (WaitClock clock(WaitClock::Clock::now()); !done;) {
      const Seconds waited = clock.look(WaitClock::Clock::now());
      if (waited > roll_call && !std::exchange(roll_called, true)) call_the_roll();
      if (waited > patience) give_up(what, waited, buffers);
      if (waited > yield_for && answer_roll_calls()) patience = deadline + spread;
      waited < yield_for ? void(sched_yield()) : std::this_thread::sleep_for(std::min(longest_sleep, waited / 16));
      check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
    }
  }

  // A roll call is the number of the asker's collective; the answer repeats it, so that answers to an earlier call do not count. These
  // few bytes leave at once, or the job is about to end: nobody waits for their requests.
  static constexpr int ask_tag = 1, answer_tag = 2;

  void send(const std::int64_t& number, int to, int tag) {
    MPI_Request request = MPI_REQUEST_NULL;
    check_mpi(MPI_Isend(&number, 1, MPI_INT64_T, to, tag, comm_, &request), "MPI_Isend");
    check_mpi(MPI_Request_free(&request), "MPI_Request_free");
  }

  void call_the_roll() {
    answered_.assign(static_cast<std::size_t>(size_), false);
    answered_[static_cast<std::size_t>(rank_)] = true;
    asked_ = started_;
    for (int r = 0; r < size_; ++r) {
      if (r != rank_) send(asked_, r, ask_tag);
    }
  }

  /// Returns whether a lower rank has asked.
  bool answer_roll_calls() {
    for (bool lower = false;;) {
      int there = 0;
      MPI_Status status;
      check_mpi(MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, comm_, &there, &status), "MPI_Iprobe");
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

  [[noreturn]] void give_up(const char* what, Seconds waited, std::initializer_list<Tensor> buffers) {
    deadline_->passed = true;
    abandoned_.assign(buffers);
    std::vector<int> silent;
    for (int r = 0; r < size_; ++r) {
      if (!answered_[static_cast<std::size_t>(r)]) silent.push_back(r);
    }
    if (silent.empty()) fail(Fault::rank, "{}: rank {} of {} waited {:.1f} s, and all others wait as well: the network is slow or broken", what, rank_, size_, waited.count());
    fail(Fault::rank, "{}: rank {} of {} waited {:.1f} s for rank {}, which does not answer: dead, stopped, cut off, or still computing", what, rank_, size_,
         waited.count(), fmt::join(silent, ", "));
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 1;
  std::shared_ptr<Deadline> deadline_;
  std::int64_t piece_;
  std::int64_t started_ = 0, asked_ = 0;    // collectives; the one that was last asked about
  std::vector<bool> answered_;              // [ranks], to that
  std::deque<std::int64_t> answers_;        // roll calls' messages
  std::vector<Tensor> abandoned_;  // memory that MPI may still write to
};

}  // namespace

std::unique_ptr<Communicator> make_mpi_communicator(Ranks ranks, std::shared_ptr<Deadline> deadline, std::int64_t piece) {
  return std::make_unique<MpiCommunicator>(ranks, std::move(deadline), piece);
}

void check_mpi(int code, const char* what) {
  if (code == MPI_SUCCESS) return;
  char words[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, words, &length);
  fail(Fault::rank, "{}: {}", what, words);
}

}  // namespace kvmesh
