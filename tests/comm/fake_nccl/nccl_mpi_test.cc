// NCCL's communicator where CUDA and NCCL are played over MPI (fake_nccl.h): what happens when a device or a rank does not do its part.
#include "comm/nccl.h"
#include "fake_nccl.h"
#include "model/generate.h"
#include "tests/comm/mpi_main.h"
#include "tests/model/twin.h"

#include <gmock/gmock-matchers.h>

#include <thread>

namespace kvmesh {
namespace {

using ::testing::HasSubstr;
using testing::group;

std::unique_ptr<Communicator> make(cudaStream_t stream, Seconds deadline = Seconds(30)) {
  return make_nccl_communicator(*group, std::make_shared<Deadline>(Deadline{deadline}), stream, false);
}

/// Every rank's number, gathered.
void gather_ranks(Communicator& ranks, const Tensor& out) {
  const Tensor mine = out.slice(ranks.rank(), ranks.rank() + 1).view({});
  mine.data<std::int32_t>()[0] = ranks.rank();
  ranks.all_gather(mine, out);
}

std::string error_of(Communicator& ranks) {
  try {
    gather_ranks(ranks, host_tensor(DType::i32, {ranks.size()}));
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), Fault::rank);
    return e.what();
  }
  return "no error";
}

TEST(Nccl, LeavesNothingBehindInOrder) {
  const int before = fake_nccl::communicators();
  {
    const auto ranks = make(fake_nccl::make_stream());
    EXPECT_EQ(fake_nccl::communicators(), before + 1);
    EXPECT_EQ(error_of(*ranks), "no error");
  }
  EXPECT_EQ(fake_nccl::communicators(), before);
  EXPECT_EQ(fake_nccl::aborted(), 0);
  EXPECT_EQ(nccl_version(), "1.2.3");
}

// The deadline is for other ranks: who waits for a device of its own may take longer.
TEST(Nccl, OnesOwnWorkIsNoWaiting) {
  const cudaStream_t stream = fake_nccl::make_stream();
  const auto ranks = make(stream, Seconds(0.6));
  fake_nccl::keep_busy(stream, Seconds(1));
  EXPECT_EQ(error_of(*ranks), "no error");
}

TEST(Nccl, ARankWhoseDeviceIsStillBusyIsNamedByThoseThatWait) {
  const int size = group->size(), busy = size - 1;
  if (size == 1) GTEST_SKIP() << "nobody to wait for";
  const cudaStream_t stream = fake_nccl::make_stream();
  auto ranks = make(stream, Seconds(0.5));
  const int before = fake_nccl::aborted();
  if (group->rank() == busy) {
    fake_nccl::keep_busy(stream, Seconds(1.5));
    (void)error_of(*ranks);  // comes late, and goes on: the others had sent their part
  } else {
    EXPECT_THAT(error_of(*ranks), HasSubstr(fmt::format("all_gather: rank {} of {} waited 0.", group->rank(), size)));
    EXPECT_THAT(error_of(*ranks), HasSubstr("cannot go on after it gave up"));
    EXPECT_EQ(fake_nccl::aborted(), before + 1) << "or the device waits for ever";
  }
  group->world().barrier();
  if (group->rank() == busy) ranks.release();
}

TEST(Nccl, ALostConnectionIsToldInNcclsWords) {
  const int before = fake_nccl::aborted();
  const auto ranks = make(fake_nccl::make_stream());
  group->world().barrier();
  fake_nccl::set_async_error(ncclRemoteError);
  EXPECT_THAT(error_of(*ranks), HasSubstr("all_gather: NCCL: remote process exited or there was a network error (as a test wants it)"));
  fake_nccl::set_async_error(ncclSuccess);
  EXPECT_EQ(fake_nccl::aborted(), before + 1);
  group->world().barrier();
}

TEST(Nccl, AnErrorOnItsWayWaitsForNobody) {
  const int before = fake_nccl::aborted();
  EXPECT_THROW(
      {
        const auto ranks = make(fake_nccl::make_stream());
        throw Error(Fault::io, "of another kind");
      },
      Error);
  EXPECT_EQ(fake_nccl::aborted(), before + 1);
  group->world().barrier();
}

TEST(Nccl, ACapturedCollectiveRunsWithItsGraph) {
  const cudaStream_t stream = fake_nccl::make_stream();
  const auto ranks = make(stream);
  const Tensor out = host_tensor(DType::i32, {ranks->size()});
  for (std::int32_t& x : out.span<std::int32_t>()) x = -1;
  fake_nccl::capture(stream, true);
  gather_ranks(*ranks, out);
  fake_nccl::capture(stream, false);
  for (int r = 0; r < ranks->size(); ++r) EXPECT_EQ(out.data<std::int32_t>()[r], r == ranks->rank() ? r : -1) << "only recorded";
  fake_nccl::replay(stream);
  ranks->wait();
  for (int r = 0; r < ranks->size(); ++r) EXPECT_EQ(out.data<std::int32_t>()[r], r);
}

// --sync logits, with unequal shares of a batch that does not divide among the ranks.
TEST(Nccl, LogitsThatItGathersDrawTheTokensOfEachRankAlone) {
  ModelConfig config;
  config.seqlen = 32;
  config.vocab_size = 61;
  config.d_emb = 32;
  config.num_layers = 1;
  config.q_heads = 4;
  config.kv_heads = 2;
  const auto device = make_device("cpu", {.threads = 1});
  const Gpt gpt(config, DType::f32, test::pack(config, DType::f32, test::random_weights(config, DType::f32, 7), *device), *device);
  const auto tokens = [&](Sync sync, Communicator* device_ranks) {
    GenerateOptions options;
    options.batch_size = 5;
    options.sync = sync;
    std::vector<std::vector<std::int32_t>> all(9);
    std::int64_t entered = 0;
    Generator(gpt, nullptr, group->world(), options, device_ranks)
        .run(
            [&]() -> std::optional<Row> {
              if (entered == std::ssize(all)) return std::nullopt;
              Row row;
              row.index = entered++;
              row.prompt = std::make_shared<const std::vector<std::int32_t>>(static_cast<std::size_t>(1 + row.index % 4), static_cast<std::int32_t>(row.index));
              row.max_new_tokens = 3 + row.index;
              row.temperature = 1;
              return row;
            },
            [&](const Row& row, Completion&& completion) { all[static_cast<std::size_t>(row.index)] = completion.tokens; }, [] { return true; });
    return all;
  };
  const auto ranks = make(fake_nccl::make_stream());
  const auto expected = tokens(Sync::tokens, nullptr);
  EXPECT_EQ(expected.back().size(), 11u);
  const int before = fake_nccl::collectives();
  EXPECT_EQ(tokens(Sync::logits, ranks.get()), expected);
  EXPECT_EQ(fake_nccl::collectives() > before, group->size() > 1);
}

TEST(Nccl, RanksFindGpusOfTheirOwn) {
  const int local = group->local_rank(), n = group->local_size();
  std::vector<std::string> gpus;
  for (int i = 0; i < n; ++i) gpus.push_back(fmt::format("0000:{:02x}:00.0", i));
  fake_nccl::set_gpus(gpus);
  EXPECT_EQ(choose_gpu(*group, false).index, local);
  fake_nccl::set_gpus({gpus[static_cast<std::size_t>(local)]});
  EXPECT_EQ(choose_gpu(*group, false).index, 0);
  fake_nccl::set_gpus({gpus[0]});
  const GpuChoice choice = choose_gpu(*group, true);
  EXPECT_EQ(choice.index, 0);
  EXPECT_EQ(choice.shared, n > 1);
  fake_nccl::set_gpus({});
  EXPECT_EQ(choose_gpu(*group, false).index, 0) << "none: whoever asks for it will say so";
}

}  // namespace
}  // namespace kvmesh
