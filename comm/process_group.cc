// MPI's start and end, and the communicators that live in between.
#include "comm/process_group.h"

#include "comm/mpi.h"

#include <mpi.h>
#include <sys/time.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <exception>
#include <iostream>

namespace kvmesh {
namespace {

volatile std::sig_atomic_t ticks_left = 0;

/// MPI_Finalize waits for the other ranks without a deadline of its own: a timer that ticks each second, and not while the process is
/// stopped, ends this one with 70 instead.
void guard_finalize(Seconds deadline) {
  ticks_left = static_cast<int>(std::min(std::ceil(deadline.count()), 1e9)) + 1;
  struct sigaction action = {};
  action.sa_flags = SA_RESTART;
  action.sa_handler = [](int) {
    ticks_left = ticks_left - 1;
    if (ticks_left <= 0) _exit(static_cast<int>(Fault::rank));
  };
  sigaction(SIGALRM, &action, nullptr);
  const itimerval each_second = {{1, 0}, {1, 0}};
  setitimer(ITIMER_REAL, &each_second, nullptr);
}

}  // namespace

struct ProcessGroup::Impl {
  std::chrono::steady_clock::time_point began = std::chrono::steady_clock::now();
  std::shared_ptr<Deadline> deadline = std::make_shared<Deadline>();
  std::shared_ptr<Deadline> end_deadline = std::make_shared<Deadline>();
  std::unique_ptr<Communicator> world, host, first_of_hosts, end;  // end: for all_arrive, when world may be in the middle of something
  bool on_first_host = true;
  int exceptions = std::uncaught_exceptions();
};

ProcessGroup::ProcessGroup(int& argc, char**& argv, std::chrono::duration<double> deadline) : impl_(std::make_unique<Impl>()) {
  set_deadline(deadline);
  int provided = 0;
  check_mpi(MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  if (provided < MPI_THREAD_SERIALIZED) fail(Fault::rank, "this MPI may not be called by one thread after another");
  impl_->world = make_mpi_communicator(Ranks::all, impl_->deadline);
  impl_->host = make_mpi_communicator(Ranks::of_this_host, impl_->deadline);
  impl_->first_of_hosts = make_mpi_communicator({Ranks::of_color, impl_->host->rank() == 0 ? 0 : 1}, impl_->deadline);
  impl_->end = make_mpi_communicator(Ranks::all, impl_->end_deadline);
  if (impl_->world->size() == 1) impl_->world = make_self_communicator();
  if (impl_->host->size() == 1) impl_->host = make_self_communicator();
  const Tensor first_rank = host_tensor(DType::i32, {1});
  first_rank.data<std::int32_t>()[0] = impl_->world->rank();
  impl_->host->broadcast(first_rank, 0);
  impl_->on_first_host = first_rank.data<std::int32_t>()[0] == 0;
}

ProcessGroup::~ProcessGroup() {
  if (impl_->deadline->passed || std::uncaught_exceptions() > impl_->exceptions) return;
  try {
    impl_->world->barrier();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "[rank %d] not all ranks came to the end: %s\n", rank(), e.what());
    abort(static_cast<int>(Fault::rank));
  }
  guard_finalize(impl_->deadline->seconds);
  impl_->end.reset();
  impl_->first_of_hosts.reset();
  impl_->host.reset();
  impl_->world.reset();
  MPI_Finalize();
  const itimerval off = {};
  setitimer(ITIMER_REAL, &off, nullptr);
}

int ProcessGroup::rank() const { return impl_->world->rank(); }
int ProcessGroup::size() const { return impl_->world->size(); }
int ProcessGroup::local_rank() const { return impl_->host->rank(); }
int ProcessGroup::local_size() const { return impl_->host->size(); }
bool ProcessGroup::on_first_host() const { return impl_->on_first_host; }
std::chrono::steady_clock::time_point ProcessGroup::began() const { return impl_->began; }
Communicator& ProcessGroup::world() { return *impl_->world; }
Communicator& ProcessGroup::host() { return *impl_->host; }

std::unique_ptr<Communicator> ProcessGroup::first(int n) {
  check(0 < n && n <= size(), "the first {} of {} ranks", n, size());
  if (size() == 1) return make_self_communicator();
  return make_mpi_communicator({Ranks::of_color, rank() < n ? 0 : 1}, impl_->deadline);
}

Communicator& ProcessGroup::first_of_hosts() { return *impl_->first_of_hosts; }

void ProcessGroup::set_deadline(std::chrono::duration<double> deadline) {
  check(deadline.count() > 0, "the deadline for other ranks is {} s, it must be positive", deadline.count());
  impl_->deadline->seconds = deadline;
}

std::shared_ptr<Deadline> ProcessGroup::deadline() const { return impl_->deadline; }

bool ProcessGroup::all_arrive(std::chrono::duration<double> patience) {
  if (impl_->deadline->passed) return false;
  impl_->end_deadline->seconds = patience;
  try {
    impl_->end->barrier();
  } catch (const Error&) {
    return false;
  }
  return true;
}

void ProcessGroup::abort(int exit_code) {
  std::cout.flush();
  std::fflush(nullptr);
  MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

std::string mpi_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = "";
  int length = 0;
  MPI_Get_library_version(text, &length);
  const std::string all(text, static_cast<std::size_t>(length));
  return all.substr(0, all.find_first_of(",\n"));
}

}  // namespace kvmesh
