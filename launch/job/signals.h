// SIGTERM, SIGINT and SIGUSR1 ask a job to stop: the first is noted, the second ends the process at once.
#pragma once

namespace kvmesh {

/// From now on these signals are noted instead of ending the process.
void catch_stop_signals();

/// Whether one has come to this rank.
bool stop_requested();

}  // namespace kvmesh
