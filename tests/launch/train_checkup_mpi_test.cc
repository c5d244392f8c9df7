// Whether there is memory enough on a device to train: an emulated one, which says how much of a GiB is left.
#include "tests/comm/mpi_main.h"

#include "launch/job/agree.h"
#include "launch/job/train_checkup.h"
#include "model/train/train_memory.h"
#include "runtime/cuda/cuda.h"

namespace kvmesh {
namespace {

using testing::group;

TEST(TrainCheckup, RanksThatShareADeviceNeedItTogether) {
  if (KVMESH_WITH_CUDA) GTEST_SKIP() << "how much is free on a GPU is for others to say as well";
  const ModelConfig config = parse_config(R"({"seqlen":256,"vocab_size":4096,"d_emb":256,"num_layers":2,"q_heads":4,"kv_heads":2,"dtype":"float32"})", "test");
  const ParamLayout layout(config);
  MeshOptions mesh;
  mesh.device = "cpu";
  mesh.threads = 1;
  Job job(mesh, config, *group);
  job.device = cuda::make_device({});
  const std::int64_t free = job.device->free_bytes();
  const auto of_rows = [&](std::int64_t rows) {
    return TrainerOptions{.optimizer = {.muon = false}, .batch = {8 * rows, rows, split(8, group->size(), group->rank())}, .recompute = false};
  };
  const auto needed = [&](std::int64_t rows) {
    return train_memory(config, job.dtype, *job.device, layout, of_rows(rows), group->rank(), group->size(), 0).device;
  };
  const auto error_of = [&](std::int64_t rows) -> std::string {
    try {
      check_train_memory(job, layout, of_rows(rows), 0, *group);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  std::int64_t most = 1;
  while (needed(most + 1) <= free * 9 / 10) ++most;
  most = -largest(group->world(), -most);
  ASSERT_GT(needed(most), free / 2);
  EXPECT_EQ(error_of(most), "");
  EXPECT_NE(error_of(2 * most), "");
  EXPECT_NE(error_of(most + 1).find("of which"), std::string::npos);
  job.share_gpus = true;
  const std::string error = error_of(most);
  if (group->size() == 1) {
    EXPECT_EQ(error, "");
  } else {
    EXPECT_NE(error.find(fmt::format("by each of {} ranks; with --", group->size())), std::string::npos) << error;
  }
}

}  // namespace
}  // namespace kvmesh
