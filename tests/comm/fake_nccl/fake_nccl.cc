// CUDA's streams and NCCL's collectives, played over MPI by one thread: each look at an event, a stream or a communicator lets work go on. Work is
// begun in the order of the stream, and not before its turn, so that a forgotten event, a wrong order and a missing rank show as on a device.
#include "fake_nccl.h"

#include "comm/fold.h"

#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <utility>

/// A piece of work says whether it is done; it is asked again until it is.
using Work = std::function<bool()>;

struct FakeStream {
  std::deque<Work> work;
  std::vector<std::function<Work()>> recorded;
  bool capturing = false;

  void enqueue(std::function<Work()> make) { capturing ? recorded.push_back(std::move(make)) : work.push_back(make()); }
  bool go_on() {
    while (!work.empty() && work.front()()) work.pop_front();
    return work.empty();
  }
};

struct FakeEvent {
  std::uint64_t recorded = 0, reached = 0;
};

struct FakeNccl {
  MPI_Comm mpi = MPI_COMM_NULL;
  MPI_Request request = MPI_REQUEST_NULL;  // joining, leaving
  int rank = 0;
  int looks = 0;                           // until NCCL's "own thread" has done what it was asked for
  std::vector<std::pair<cudaStream_t, std::function<Work()>>> asked;
};

namespace {

constexpr int looks_in_progress = 3;
std::vector<std::unique_ptr<FakeStream>> streams;
std::vector<std::pair<cudaStream_t, std::function<Work()>>> group;
FakeNccl* group_of = nullptr;
int group_depth = 0, alive = 0, aborts = 0, asked = 0, unsettled = 0;
ncclResult_t async_error = ncclSuccess;
std::vector<std::string> gpus = {"0000:01:00.0"};

FakeStream& of(cudaStream_t stream) {
  static const cudaStream_t default_stream = fake_nccl::make_stream();
  return stream ? *stream : *default_stream;
}

void go_on() {
  for (const auto& stream : streams) stream->go_on();
}

/// One rank's part of a collective over `bytes` bytes at `memory`, of which it gives those at `own`. MPI works on memory of its own, which is left to it when
/// the work is abandoned. Without `memory` it only gives.
std::function<Work()> mpi_work(const void* given, std::size_t given_bytes, std::size_t own, void* memory, std::size_t bytes, std::function<void(std::byte*, MPI_Request*)> begin) {
  struct Call {
    std::vector<std::byte> buffer;
    MPI_Request request = MPI_REQUEST_NULL;
  };
  return [=] {
    return [=, call = std::shared_ptr<Call*>(new Call*(nullptr))] {
      if (*call == nullptr) {
        *call = new Call;
        (*call)->buffer.resize(bytes);
        if (given_bytes > 0) std::memcpy((*call)->buffer.data() + own, given, given_bytes);
        begin((*call)->buffer.data(), &(*call)->request);
      }
      int done = 0;
      MPI_Test(&(*call)->request, &done, MPI_STATUS_IGNORE);
      if (done == 0) return false;
      if (memory != nullptr) std::memcpy(memory, (*call)->buffer.data(), bytes);
      delete *call;
      return true;
    };
  };
}

ncclResult_t ask(ncclComm_t comm, std::vector<std::pair<cudaStream_t, std::function<Work()>>> work) {
  if (comm->looks > 0) return ncclInvalidUsage;  // the caller has not waited for the last one
  comm->asked = std::move(work);
  comm->looks = looks_in_progress;
  ++asked;
  ++unsettled;
  return ncclInProgress;
}

ncclResult_t collective(ncclComm_t comm, cudaStream_t stream, std::function<Work()> work) {
  if (group_depth == 0) return ask(comm, {{stream, std::move(work)}});
  group_of = comm;
  group.emplace_back(stream, std::move(work));
  return ncclSuccess;
}

/// A group's work is begun all at once: a rank may send first and receive then.
std::function<Work()> together(std::vector<std::pair<cudaStream_t, std::function<Work()>>> parts) {
  return [parts = std::move(parts)]() -> Work {
    const auto left = std::make_shared<std::vector<Work>>();
    for (const auto& [stream, make] : parts) left->push_back(make());
    return [left] {
      std::erase_if(*left, [](Work& work) { return work(); });
      return left->empty();
    };
  };
}

template <typename T>
void fold_now(const void* operands, void* out, std::int64_t n, int ranks, kvmesh::Reduce op) {
  for (std::int64_t i = 0; i < n; ++i) {
    T all = static_cast<const T*>(operands)[i];
    for (int r = 1; r < ranks; ++r) all = kvmesh::fold(op, all, static_cast<const T*>(operands)[r * n + i]);
    static_cast<T*>(out)[i] = all;
  }
}

}  // namespace

namespace kvmesh {

int fold_on_device(DType dtype, const void* operands, void* out, std::int64_t n, int ranks, Reduce op, void* stream) {
  of(static_cast<FakeStream*>(stream)).enqueue([=]() -> Work {
    return [=] {
      switch (dtype) {
        case DType::i32: fold_now<std::int32_t>(operands, out, n, ranks, op); break;
        case DType::i64: fold_now<std::int64_t>(operands, out, n, ranks, op); break;
        case DType::u64: fold_now<std::uint64_t>(operands, out, n, ranks, op); break;
        case DType::f32: fold_now<float>(operands, out, n, ranks, op); break;
        default: fold_now<double>(operands, out, n, ranks, op);
      }
      return true;
    };
  });
  return cudaSuccess;
}

}  // namespace kvmesh

namespace fake_nccl {

cudaStream_t make_stream() { return streams.emplace_back(std::make_unique<FakeStream>()).get(); }

void keep_busy(cudaStream_t stream, std::chrono::duration<double> time) {
  using Clock = std::chrono::steady_clock;
  of(stream).enqueue([=]() -> Work {
    return [=, end = std::make_shared<Clock::time_point>()] {
      if (*end == Clock::time_point()) *end = Clock::now() + std::chrono::duration_cast<Clock::duration>(time);
      return Clock::now() >= *end;
    };
  });
}

void capture(cudaStream_t stream, bool on) {
  if (on) of(stream).recorded.clear();
  of(stream).capturing = on;
}

void replay(cudaStream_t stream) {
  for (const auto& make : of(stream).recorded) of(stream).work.push_back(make());
}

void set_async_error(ncclResult_t error) { async_error = error; }
int communicators() { return alive; }
int aborted() { return aborts; }
int collectives() { return asked; }
void set_gpus(std::vector<std::string> bus_ids) { gpus = std::move(bus_ids); }

}  // namespace fake_nccl

const char* cudaGetErrorString(cudaError_t error) { return error == cudaErrorInvalidValue ? "invalid argument" : "no error"; }
cudaError_t cudaGetDeviceCount(int* count) { return *count = static_cast<int>(gpus.size()), cudaSuccess; }
cudaError_t cudaDeviceGetPCIBusId(char* name, int bytes, int device) {
  std::strncpy(name, gpus.at(static_cast<std::size_t>(device)).c_str(), static_cast<std::size_t>(bytes) - 1);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, std::size_t bytes) { return *memory = std::malloc(bytes), cudaSuccess; }
cudaError_t cudaFree(void* memory) { return std::free(memory), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = new FakeEvent, cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (of(stream).capturing || unsettled > 0) return cudaErrorInvalidValue;  // what NCCL was asked for would come after it
  const std::uint64_t number = ++event->recorded;
  of(stream).enqueue([=]() -> Work { return [=] { return event->reached = number, true; }; });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
  go_on();
  return event->reached == event->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  go_on();
  return of(stream).work.empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = of(stream).capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

ncclResult_t ncclGetVersion(int* version) { return *version = 10203, ncclSuccess; }
ncclResult_t ncclGetUniqueId(ncclUniqueId* id) { return std::fill_n(id->internal, sizeof id->internal, 'i'), ncclSuccess; }
const char* ncclGetErrorString(ncclResult_t result) { return result == ncclRemoteError ? "remote process exited or there was a network error" : "an error of a fake"; }
const char* ncclGetLastError(ncclComm_t) { return "as a test wants it"; }

ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int, ncclUniqueId id, int rank, ncclConfig_t* config) {
  if (config->blocking != 0 || std::count(id.internal, id.internal + sizeof id.internal, 'i') != sizeof id.internal) return ncclInvalidArgument;
  *comm = new FakeNccl;
  ++alive;
  (*comm)->rank = rank;
  MPI_Comm_idup(MPI_COMM_WORLD, &(*comm)->mpi, &(*comm)->request);
  return ncclInProgress;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm) {
  MPI_Ibarrier(comm->mpi, &comm->request);
  return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  MPI_Comm_free(&comm->mpi);
  delete comm;
  --alive;
  return ncclSuccess;
}

// Called on another thread, while the first waits for it: nothing of MPI.
ncclResult_t ncclCommAbort(ncclComm_t comm) {
  for (const auto& stream : streams) stream->work.clear();
  if (comm->looks > 0) --unsettled;
  delete comm;
  --alive;
  ++aborts;
  return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
  *error = async_error;
  if (async_error != ncclSuccess) return ncclSuccess;
  int done = 0;
  MPI_Test(&comm->request, &done, MPI_STATUS_IGNORE);
  if (comm->looks > 0 && --comm->looks == 0) {
    --unsettled;
    for (auto& [stream, make] : std::exchange(comm->asked, {})) of(stream).enqueue(std::move(make));
  }
  if (!done || comm->looks > 0) *error = ncclInProgress;
  return ncclSuccess;
}

ncclResult_t ncclAllGather(const void* send, void* receive, std::size_t bytes, ncclDataType_t, ncclComm_t comm, cudaStream_t stream) {
  int ranks = 1;
  MPI_Comm_size(comm->mpi, &ranks);
  const int n = static_cast<int>(bytes);
  const auto begin = [n, mpi = comm->mpi](std::byte* all, MPI_Request* request) { MPI_Iallgather(MPI_IN_PLACE, n, MPI_BYTE, all, n, MPI_BYTE, mpi, request); };
  return collective(comm, stream, mpi_work(send, bytes, static_cast<std::size_t>(comm->rank) * bytes, receive, static_cast<std::size_t>(ranks) * bytes, begin));
}

ncclResult_t ncclBroadcast(const void* send, void* receive, std::size_t bytes, ncclDataType_t, int root, ncclComm_t comm, cudaStream_t stream) {
  const auto begin = [n = static_cast<int>(bytes), root, mpi = comm->mpi](std::byte* all, MPI_Request* request) { MPI_Ibcast(all, n, MPI_BYTE, root, mpi, request); };
  return collective(comm, stream, mpi_work(send, comm->rank == root ? bytes : 0, 0, receive, bytes, begin));
}

ncclResult_t ncclSend(const void* send, std::size_t bytes, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
  const auto begin = [n = static_cast<int>(bytes), peer, mpi = comm->mpi](std::byte* all, MPI_Request* request) { MPI_Isend(all, n, MPI_BYTE, peer, 0, mpi, request); };
  return collective(comm, stream, mpi_work(send, bytes, 0, nullptr, bytes, begin));
}

ncclResult_t ncclRecv(void* receive, std::size_t bytes, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t stream) {
  const auto begin = [n = static_cast<int>(bytes), peer, mpi = comm->mpi](std::byte* all, MPI_Request* request) { MPI_Irecv(all, n, MPI_BYTE, peer, 0, mpi, request); };
  return collective(comm, stream, mpi_work(nullptr, 0, 0, receive, bytes, begin));
}

ncclResult_t ncclGroupStart() { return ++group_depth, ncclSuccess; }
ncclResult_t ncclGroupEnd() {
  if (--group_depth > 0 || group.empty()) return ncclSuccess;
  const cudaStream_t stream = group.front().first;
  return ask(group_of, {{stream, together(std::exchange(group, {}))}});
}
