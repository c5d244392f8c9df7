// Collectives in host memory. Every MPI call here returns at once; waiting is Waiting's.
#include "comm/mpi.h"

#include "comm/waiting.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

namespace kvmesh {
namespace {

constexpr std::int64_t fold_bytes = 1 << 20;  // what all_reduce gathers at a time, over all ranks

class MpiCommunicator final : public Communicator {
 public:
  MpiCommunicator(Ranks ranks, std::shared_ptr<Deadline> deadline, std::int64_t piece) : waiting_(ranks, std::move(deadline)), piece_(piece) {
    check(0 < piece && piece <= std::numeric_limits<int>::max(), "an MPI message cannot have pieces of {} bytes", piece);
  }

  int rank() const override { return waiting_.rank(); }
  int size() const override { return waiting_.size(); }

  void barrier() override {
    MPI_Request request = start("barrier");
    check_mpi(MPI_Ibarrier(waiting_.comm(), &request), "MPI_Ibarrier");
    wait("barrier", request, {});
  }

 private:
  /// Requests under way. Each that has come or gone shows that the others are alive.
  class Begun final : public Pending {
   public:
    Begun(MpiCommunicator& ranks, const char* what, std::vector<Tensor> memory) : ranks_(ranks), what_(what), memory_(std::move(memory)) { ranks.waiting_.start(what); }
    ~Begun() override {
      if (done_) return;
      ranks_.abandoned_.insert(ranks_.abandoned_.end(), memory_.begin(), memory_.end());
      ranks_.waiting_.abandon();
    }
    MPI_Request* next() { return &requests_.emplace_back(MPI_REQUEST_NULL); }
    bool poll() override {
      while (look() == Waiting::Seen::own_work) {
      }
      return done_;
    }
    void wait() override {
      if (!done_) ranks_.waiting_.until(what_, [this] { return look(); });
    }

   private:
    Waiting::Seen look() {
      int some = 0;
      which_.resize(requests_.size());
      check_mpi(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &some, which_.data(), MPI_STATUSES_IGNORE), what_);
      done_ = some == MPI_UNDEFINED;
      return done_ ? Waiting::Seen::done : some > 0 ? Waiting::Seen::own_work : Waiting::Seen::others;
    }

    MpiCommunicator& ranks_;
    const char* what_;
    std::vector<Tensor> memory_;
    std::vector<MPI_Request> requests_;
    std::vector<int> which_;
    bool done_ = false;
  };

  void do_all_gather(const Tensor& in, std::span<const std::int64_t> counts, const Tensor& out) override {
    constexpr const char* what = "all_gather";
    if (out.bytes() == 0) return;
    const auto width = static_cast<std::int64_t>(size_of(out.dtype()));
    const Tensor offsets = host_tensor(DType::i32, {2, size()});  // bytes of each rank, bytes before it
    auto* const to = static_cast<std::byte*>(out.raw());
    const bool whole = static_cast<std::int64_t>(out.bytes()) <= piece_;
    std::int64_t before = 0;
    for (int r = 0; r < size(); ++r) {
      const std::int64_t bytes = counts[static_cast<std::size_t>(r)] * width;
      if (r == rank() && bytes > 0) std::memmove(to + before, in.raw(), static_cast<std::size_t>(bytes));
      if (whole) {
        offsets.data<std::int32_t>()[r] = static_cast<int>(bytes);
        offsets.data<std::int32_t>()[size() + r] = static_cast<int>(before);
      } else {
        broadcast_bytes(what, out, to + before, bytes, r);
      }
      before += bytes;
    }
    if (!whole) return;
    MPI_Request request = start(what);
    const int* sizes = offsets.data<std::int32_t>();
    check_mpi(MPI_Iallgatherv(MPI_IN_PLACE, 0, MPI_BYTE, to, sizes, sizes + size(), MPI_BYTE, waiting_.comm(), &request), "MPI_Iallgatherv");
    wait(what, request, {out, offsets});
  }

  void do_broadcast(const Tensor& inout, int root) override {
    broadcast_bytes("broadcast", inout, static_cast<std::byte*>(inout.raw()), static_cast<std::int64_t>(inout.bytes()), root);
  }

  /// [data, data + bytes) lies in `memory`.
  void broadcast_bytes(const char* what, const Tensor& memory, std::byte* data, std::int64_t bytes, int root) {
    for (std::int64_t done = 0; done < bytes; done += piece_) {
      MPI_Request request = start(what);
      check_mpi(MPI_Ibcast(data + done, static_cast<int>(std::min(piece_, bytes - done)), MPI_BYTE, root, waiting_.comm(), &request), "MPI_Ibcast");
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
    const std::size_t chunk = std::max<std::size_t>(1, fold_bytes / sizeof(T) / static_cast<std::size_t>(size()));
    const Tensor operands = host_tensor(DTypeOf<T>::value, {size(), static_cast<std::int64_t>(std::min(chunk, inout.size()))});
    for (std::size_t done = 0; done < inout.size(); done += chunk) {
      const std::span<T> part = inout.subspan(done, std::min(chunk, inout.size() - done));
      const auto n = static_cast<std::int64_t>(part.size());
      const Tensor mine({}, part.data(), DTypeOf<T>::value, {n});
      all_gather(mine, operands.view({operands.numel()}).slice(0, size() * n).view({size(), n}));
      const T* operand = operands.data<T>();
      std::copy_n(operand, part.size(), part.data());
      for (int r = 1; r < size(); ++r) {
        for (std::size_t i = 0; i < part.size(); ++i) part[i] = fold(op, part[i], operand[r * n + static_cast<std::int64_t>(i)]);
      }
    }
  }

  void do_exchange(const Tensor& in, std::span<const std::int64_t> send, const Tensor& out, std::span<const std::int64_t> receive) override {
    do_begin_exchange(in, send, out, receive)->wait();
  }

  /// Every piece is a message; those between two ranks arrive in order, also those of several exchanges.
  std::unique_ptr<Pending> do_begin_exchange(const Tensor& in, std::span<const std::int64_t> send, const Tensor& out, std::span<const std::int64_t> receive) override {
    auto begun = std::make_unique<Begun>(*this, "exchange", std::vector<Tensor>{in, out});
    const auto* from = static_cast<const std::byte*>(in.raw());
    auto* to = static_cast<std::byte*>(out.raw());
    for (int r = 0; r < size(); ++r) {
      const std::int64_t sent = send[static_cast<std::size_t>(r)], received = receive[static_cast<std::size_t>(r)];
      if (r == rank()) {
        if (sent > 0) std::memcpy(to, from, static_cast<std::size_t>(sent));
      } else {
        for (std::int64_t done = 0; done < received; done += piece_) {
          const auto bytes = static_cast<int>(std::min(piece_, received - done));
          check_mpi(MPI_Irecv(to + done, bytes, MPI_BYTE, r, Waiting::data_tag, waiting_.comm(), begun->next()), "MPI_Irecv");
        }
        for (std::int64_t done = 0; done < sent; done += piece_) {
          const auto bytes = static_cast<int>(std::min(piece_, sent - done));
          check_mpi(MPI_Isend(from + done, bytes, MPI_BYTE, r, Waiting::data_tag, waiting_.comm(), begun->next()), "MPI_Isend");
        }
      }
      from += sent;
      to += received;
    }
    return begun;
  }

  std::unique_ptr<Pending> do_begin_library_sum(const Tensor& inout) override {
    auto begun = std::make_unique<Begun>(*this, "library_sum", std::vector<Tensor>{inout});
    const std::int64_t n = std::max<std::int64_t>(1, piece_ / static_cast<std::int64_t>(sizeof(float)));
    for (std::int64_t done = 0; done < inout.numel(); done += n) {
      const auto count = static_cast<int>(std::min(n, inout.numel() - done));
      check_mpi(MPI_Iallreduce(MPI_IN_PLACE, inout.data<float>() + done, count, MPI_FLOAT, MPI_SUM, waiting_.comm(), begun->next()), "MPI_Iallreduce");
    }
    return begun;
  }

  MPI_Request start(const char* what) {
    waiting_.start(what);
    return MPI_REQUEST_NULL;
  }

  void wait(const char* what, MPI_Request& request, std::initializer_list<Tensor> buffers) {
    until(what, buffers, [&] {
      int done = 0;
      check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), what);
      return done ? Waiting::Seen::done : Waiting::Seen::others;
    });
  }

  void until(const char* what, std::initializer_list<Tensor> buffers, const std::function<Waiting::Seen()>& look) {
    try {
      waiting_.until(what, look);
    } catch (...) {
      abandoned_.insert(abandoned_.end(), buffers);
      throw;
    }
  }

  Waiting waiting_;
  std::int64_t piece_;
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
