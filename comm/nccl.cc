// Collectives between devices. NCCL never blocks here (its communicator is a non-blocking one): the calling thread looks at NCCL's state and at
// events on the stream, as Waiting has it, and whatever goes wrong aborts the communicator before the error leaves this file.
#include "comm/nccl.h"

#include "comm/waiting.h"
#include "runtime/say.h"

#include <cuda_runtime_api.h>
#include <nccl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <future>
#include <thread>
#include <utility>
#include <vector>

namespace kvmesh {
namespace {

constexpr std::int64_t fold_bytes = 64 << 20;     // what all_reduce gathers at a time, over all ranks
constexpr std::chrono::seconds abort_patience{2};  // for NCCL to end what waits on the device
constexpr int bus_id_bytes = 32;

void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(Fault::rank, "{}: CUDA: {}", what, cudaGetErrorString(error));
}

void check_nccl(ncclResult_t result, const char* what, ncclComm_t comm = nullptr) {
  if (result == ncclSuccess || result == ncclInProgress) return;
  fail(Fault::rank, "{}: NCCL: {} ({})", what, ncclGetErrorString(result), ncclGetLastError(comm));
}

/// Whether the stream has come to it; an Error where the device has failed.
bool reached(cudaError_t query, const char* what) {
  if (query == cudaErrorNotReady) return false;
  check_cuda(query, what);
  return true;
}

struct EventDeleter {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, EventDeleter>;

Event make_event() {
  cudaEvent_t event = nullptr;
  check_cuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
  return Event(event);
}

struct DeviceDeleter {
  void operator()(void* memory) const { cudaFree(memory); }
};

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(ProcessGroup& group, std::shared_ptr<Deadline> deadline, cudaStream_t stream, bool shares_gpu)
      : world_(group.world()), waiting_(Ranks::all, std::move(deadline)), stream_(stream), here_(make_event()), done_(make_event()) {
    std::int32_t any_shares = shares_gpu;
    world_.all_reduce(Tensor({}, &any_shares, DType::i32, {1}), Reduce::max);
    if (any_shares) {  // NCCL refuses two ranks of one host on one GPU; it reads this once a process
      setenv("NCCL_HOSTID", fmt::format("kvmesh-{}", rank()).c_str(), 0);
      setenv("NCCL_MAX_NCHANNELS", "1", 0);
    }
    constexpr const char* what = "joining NCCL";
    ncclUniqueId id{};
    if (rank() == 0) check_nccl(ncclGetUniqueId(&id), what);
    world_.broadcast(Tensor({}, &id, DType::u8, {sizeof id}), 0);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    or_abort([&] {
      waiting_.start(what);
      check_nccl(ncclCommInitRankConfig(&comm_, size(), id, rank(), &config), what, comm_);
      waiting_.until(what, [&] { return settled(what) ? Waiting::Seen::done : Waiting::Seen::others; });
    });
  }

  // In order, all ranks leave together. While an error is on its way nobody is waited for.
  ~NcclCommunicator() override {
    try {
      if (comm_ == nullptr) return;
      if (std::uncaught_exceptions() > exceptions_ || waiting_.given_up()) {
        abort();
        return;
      }
      or_abort([&] {
        constexpr const char* what = "leaving NCCL";
        waiting_.start(what);
        check_nccl(ncclCommFinalize(comm_), what, comm_);
        waiting_.until(what, [&] { return settled(what) ? Waiting::Seen::done : Waiting::Seen::others; });
        check_nccl(ncclCommDestroy(std::exchange(comm_, nullptr)), what);
      });
    } catch (const std::exception& e) {
      say("[rank {}] {}\n", rank(), e.what());
    }
  }

  int rank() const override { return waiting_.rank(); }
  int size() const override { return waiting_.size(); }

  void barrier() override {
    wait();
    world_.barrier();
  }

  void wait() override {
    constexpr const char* what = "waiting for the device";
    or_abort([&] {
      waiting_.start(what);
      waiting_.until(what, [&] { return settled(what) && reached(cudaStreamQuery(stream_), what) ? Waiting::Seen::done : Waiting::Seen::others; });
    });
  }

 private:
  void do_all_gather(const Tensor& in, std::span<const std::int64_t> counts, const Tensor& out) override {
    if (out.bytes() == 0) return;
    const std::size_t width = size_of(out.dtype());
    collective("all_gather", [&] {
      if (std::equal(counts.begin() + 1, counts.end(), counts.begin())) {
        return ncclAllGather(in.raw(), out.raw(), static_cast<std::size_t>(counts[0]) * width, ncclUint8, comm_, stream_);
      }
      ncclResult_t result = ncclGroupStart();
      auto* to = static_cast<std::byte*>(out.raw());
      for (int r = 0; r < size(); ++r) {
        const std::size_t bytes = static_cast<std::size_t>(counts[static_cast<std::size_t>(r)]) * width;
        if (bytes > 0 && result == ncclSuccess) result = ncclBroadcast(r == rank() ? in.raw() : to, to, bytes, ncclUint8, r, comm_, stream_);
        to += bytes;
      }
      const ncclResult_t end = ncclGroupEnd();
      return result == ncclSuccess || result == ncclInProgress ? end : result;
    });
  }

  void do_broadcast(const Tensor& inout, int root) override {
    if (inout.bytes() == 0) return;
    collective("broadcast", [&] { return ncclBroadcast(inout.raw(), inout.raw(), inout.bytes(), ncclUint8, root, comm_, stream_); });
  }

  void do_exchange(const Tensor& in, std::span<const std::int64_t> send, const Tensor& out, std::span<const std::int64_t> receive) override {
    collective("exchange", [&] {
      ncclResult_t result = ncclGroupStart();
      const auto* from = static_cast<const std::byte*>(in.raw());
      auto* to = static_cast<std::byte*>(out.raw());
      for (int r = 0; r < size(); ++r) {
        const auto sent = static_cast<std::size_t>(send[static_cast<std::size_t>(r)]), received = static_cast<std::size_t>(receive[static_cast<std::size_t>(r)]);
        if (sent > 0 && result == ncclSuccess) result = ncclSend(from, sent, ncclUint8, r, comm_, stream_);
        if (received > 0 && result == ncclSuccess) result = ncclRecv(to, received, ncclUint8, r, comm_, stream_);
        from += sent;
        to += received;
      }
      const ncclResult_t end = ncclGroupEnd();
      return result == ncclSuccess || result == ncclInProgress ? end : result;
    });
  }

  /// ncclAllReduce sums in an order of its own, and its min and max lose NaN: the operands are gathered, and every rank folds them itself.
  void do_all_reduce(const Tensor& inout, Reduce op) override {
    const auto width = static_cast<std::int64_t>(size_of(inout.dtype()));
    const std::int64_t n = inout.numel(), chunk = std::min(n, std::max<std::int64_t>(1, fold_bytes / width / size()));
    reserve(static_cast<std::size_t>(chunk * width * size()));
    for (std::int64_t done = 0; done < n; done += chunk) {
      const std::int64_t count = std::min(chunk, n - done);
      std::byte* const part = static_cast<std::byte*>(inout.raw()) + done * width;
      collective("all_reduce", [&] { return ncclAllGather(part, operands_.get(), static_cast<std::size_t>(count * width), ncclUint8, comm_, stream_); });
      check_cuda(static_cast<cudaError_t>(fold_on_device(inout.dtype(), operands_.get(), part, count, size(), op, stream_)), "all_reduce");
    }
  }

  void reserve(std::size_t bytes) {
    if (bytes <= reserved_) return;
    operands_.reset();
    void* memory = nullptr;
    check_cuda(cudaMalloc(&memory, bytes), "all_reduce");
    operands_.reset(memory);
    reserved_ = bytes;
  }

  /// `enqueue` puts NCCL's work on the stream, at once or on a thread of NCCL's own; events before and after it tell how far the device is.
  template <typename Enqueue>
  void collective(const char* what, const Enqueue& enqueue) {
    or_abort([&] {
      cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
      check_cuda(cudaStreamIsCapturing(stream_, &capture), what);
      const bool recorded = capture != cudaStreamCaptureStatusNone;
      waiting_.start(what);
      if (!recorded) check_cuda(cudaEventRecord(here_.get(), stream_), what);
      check_nccl(enqueue(), what, comm_);
      bool enqueued = false;
      waiting_.until(what, [&] {
        if (!settled(what)) return Waiting::Seen::others;
        if (recorded) return Waiting::Seen::done;
        if (!std::exchange(enqueued, true)) check_cuda(cudaEventRecord(done_.get(), stream_), what);
        if (!reached(cudaEventQuery(here_.get()), what)) return Waiting::Seen::own_work;
        return reached(cudaEventQuery(done_.get()), what) ? Waiting::Seen::done : Waiting::Seen::others;
      });
    });
  }

  /// Whether NCCL's own threads have done what they were asked for; an Error when something has failed since, a lost connection, say.
  bool settled(const char* what) {
    ncclResult_t state = ncclSuccess;
    check_nccl(ncclCommGetAsyncError(comm_, &state), what, comm_);
    check_nccl(state, what, comm_);
    return state == ncclSuccess;
  }

  template <typename Body>
  void or_abort(const Body& body) {
    try {
      body();
    } catch (...) {
      abort();
      throw;
    }
  }

  /// Ends NCCL's kernels that wait for other ranks: memory that they use is about to be freed, which waits for them. On a thread of its own, so
  /// that the error is told even where the device does not obey.
  void abort() {
    if (comm_ == nullptr) return;
    std::packaged_task<void()> task([comm = std::exchange(comm_, nullptr)] { ncclCommAbort(comm); });
    const std::future<void> aborted = task.get_future();
    std::thread(std::move(task)).detach();
    aborted.wait_for(abort_patience);
  }

  Communicator& world_;
  Waiting waiting_;
  cudaStream_t stream_;
  Event here_, done_;
  std::unique_ptr<void, DeviceDeleter> operands_;  // all_reduce's
  std::size_t reserved_ = 0;
  ncclComm_t comm_ = nullptr;
  int exceptions_ = std::uncaught_exceptions();
};

std::vector<std::string> visible_gpus() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return {};  // no driver, say; count is then as it was
  std::vector<std::string> gpus;
  for (int i = 0; i < count; ++i) {
    char bus_id[bus_id_bytes] = "";
    check_cuda(cudaDeviceGetPCIBusId(bus_id, bus_id_bytes, i), "cudaDeviceGetPCIBusId");
    gpus.emplace_back(bus_id);
  }
  return gpus;
}

}  // namespace

GpuChoice choose_gpu(ProcessGroup& group, bool share) {
  Communicator& host = group.host();
  const std::vector<std::string> mine = visible_gpus();
  const auto n = static_cast<std::int64_t>(mine.size());
  const Tensor count = host_tensor(DType::i64, {1}), counts = host_tensor(DType::i64, {host.size(), 1});
  count.data<std::int64_t>()[0] = n;
  host.all_gather(count, counts);
  std::int64_t total = 0;
  for (const std::int64_t c : counts.span<std::int64_t>()) total += c;
  if (total == 0) return {};
  const Tensor names = host_tensor(DType::u8, {n, bus_id_bytes}), all = host_tensor(DType::u8, {total, bus_id_bytes});
  std::uint8_t* own_name = names.data<std::uint8_t>();
  for (const std::string& gpu : mine) {
    std::memset(own_name, 0, bus_id_bytes);
    std::memcpy(own_name, gpu.data(), gpu.size());
    own_name += bus_id_bytes;
  }
  host.all_gather_ragged(names, counts.span<std::int64_t>(), all);
  std::vector<std::vector<std::string>> visible;
  const char* name = reinterpret_cast<const char*>(all.data<std::uint8_t>());
  for (const std::int64_t c : counts.span<std::int64_t>()) {
    std::vector<std::string>& gpus = visible.emplace_back();
    for (std::int64_t i = 0; i < c; ++i, name += bus_id_bytes) gpus.emplace_back(name);
  }
  return choose_gpus(visible, share)[static_cast<std::size_t>(host.rank())];
}

std::unique_ptr<Communicator> make_nccl_communicator(ProcessGroup& group, std::shared_ptr<Deadline> deadline, void* stream, bool shares_gpu) {
  return std::make_unique<NcclCommunicator>(group, std::move(deadline), static_cast<cudaStream_t>(stream), shares_gpu);
}

std::string nccl_version() {
  int version = 0;
  check_nccl(ncclGetVersion(&version), "ncclGetVersion");
  return fmt::format("{}.{}.{}", version / 10000, version / 100 % 100, version % 100);
}

}  // namespace kvmesh
