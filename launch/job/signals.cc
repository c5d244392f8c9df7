// Noting signals.
#include "launch/job/signals.h"

#include <signal.h>
#include <unistd.h>

#include <initializer_list>

namespace kvmesh {
namespace {

volatile sig_atomic_t requested = 0;

void note(int) {
  if (requested) _exit(75);
  requested = 1;
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action = {};
  action.sa_handler = note;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1}) sigaction(signal, &action, nullptr);
}

bool stop_requested() { return requested != 0; }

}  // namespace kvmesh
