// The optimizer's state on its way to rank 0 and back, whatever is owned by whom.
#include "tests/comm/mpi_main.h"

#include "model/train/train_state.h"

#include <algorithm>

namespace kvmesh {
namespace {

using testing::group;

float value(std::int64_t element) { return static_cast<float>(element) + 1; }

/// Three stretches of `size` elements each, in which later ranks have more, the first one nothing of the last.
Owners uneven(std::int64_t size, int ranks) {
  Owners owners(static_cast<std::size_t>(ranks));
  for (std::int64_t stretch = 0; stretch < 3; ++stretch) {
    std::int64_t begin = 0;
    for (int r = 0; r < ranks; ++r) {
      const std::int64_t end = r + 1 == ranks ? size : stretch == 2 && r == 0 ? 0 : begin + (size - begin) / (2 * ranks);
      owners[static_cast<std::size_t>(r)].push_back({stretch * size + begin, stretch * size + end});
      begin = end;
    }
  }
  return owners;
}

TEST(TrainState, ComesTogetherOnTheFirstRankAndGoesBack) {
  Communicator& world = group->world();
  const auto device = make_device("cpu", {.threads = 1});
  for (const std::int64_t size : {1, 1000, (3 << 20) + 5}) {  // of the last, a rank's own are several chunks
    const Owners owners = uneven(size, world.size());
    const std::vector<Range>& own = owners[static_cast<std::size_t>(world.rank())];
    const Tensor whole = world.rank() == 0 ? host_tensor(DType::f32, {3 * size}) : Tensor(), mine = host_tensor(DType::f32, {size_of(own)}), back = host_tensor(DType::f32, {size_of(own)});
    float* to = mine.data<float>();
    for (const Range& stretch : own) {
      for (std::int64_t i = stretch.begin; i < stretch.end; ++i) *to++ = value(i);
    }
    collect_state(world, *device, owners, mine, whole);
    if (world.rank() == 0) {
      std::int64_t wrong = 0;
      for (std::int64_t i = 0; i < 3 * size; ++i) wrong += whole.data<float>()[i] != value(i);
      EXPECT_EQ(wrong, 0) << "of " << 3 * size;
    }
    spread_state(world, *device, owners, whole, back);
    EXPECT_TRUE(std::ranges::equal(mine.span<float>(), back.span<float>())) << size;
  }
}

TEST(TrainState, TheBufferIsSmall) {
  EXPECT_EQ(state_buffer({{{0, 10}}, {{10, 30}}}), 4 * 30);
  EXPECT_LE(state_buffer(uneven(1 << 28, 64)), 17 << 20);
}

}  // namespace
}  // namespace kvmesh
