// The clock that a waiting rank looks at, told the time by hand.
#include "comm/deadline.h"

#include <gtest/gtest.h>

namespace kvmesh {
namespace {

using std::chrono::milliseconds;

TEST(WaitClock, AddsUpTheTimeBetweenLooks) {
  const WaitClock::Clock::time_point start{};
  WaitClock clock(start);
  EXPECT_EQ(clock.look(start).count(), 0);
  double waited = 0;
  for (int i = 1; i <= 1000; ++i) waited = clock.look(start + milliseconds(7 * i)).count();
  EXPECT_NEAR(waited, 7.0, 1e-9);
}

// A process that is stopped does not look; when it goes on, an hour has passed of which it has waited a tenth of a second.
TEST(WaitClock, TimeInWhichTheProcessWasStoppedDoesNotCount) {
  const WaitClock::Clock::time_point start{};
  WaitClock clock(start);
  clock.look(start + milliseconds(50));
  EXPECT_NEAR(clock.look(start + std::chrono::hours(1)).count(), 0.15, 1e-9);
  EXPECT_NEAR(clock.look(start + std::chrono::hours(1) + milliseconds(30)).count(), 0.18, 1e-9);
  EXPECT_NEAR(clock.look(start + std::chrono::hours(2)).count(), 0.28, 1e-9);
}

// A rank that waits for a stopped one looks every few milliseconds (mpi.cc), so all of its waiting counts.
TEST(WaitClock, LooksThatAreCloseCountInFull) {
  const WaitClock::Clock::time_point start{};
  WaitClock clock(start);
  Seconds waited{0};
  int looks = 0;
  while (waited < Seconds{60}) waited = clock.look(start + milliseconds(100) * ++looks);
  EXPECT_EQ(looks, 600);
}

}  // namespace
}  // namespace kvmesh
