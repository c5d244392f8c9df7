// Every collective, of every dtype, against what the rank works out alone. Sums are of whole numbers that every order adds exactly. By default
// between hosts' memories; with KVMESH_TEST_NCCL=1 by NCCL, between the memories of the devices that KVMESH_TEST_DEVICE
// says.
#include "tests/comm/mpi_main.h"

#include "comm/mpi.h"
#include "comm/nccl.h"
#include "tests/runtime/test_device.h"

#include <gmock/gmock-matchers.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

namespace kvmesh {
namespace {

using testing::group;

constexpr DType all_dtypes[] = {DType::u8, DType::i32, DType::i64, DType::u64, DType::f16, DType::bf16, DType::f32, DType::f64};

bool by_nccl() { return std::getenv("KVMESH_TEST_NCCL") != nullptr; }

GpuChoice gpu() { return choose_gpu(*group, true); }

/// Where the tensors lie.
Device& memory() {
  static const std::unique_ptr<Device> device = on_cuda() ? make_device("cuda", {.gpu = gpu().index}) : make_device("cpu", {.threads = 1});
  return *device;
}

std::unique_ptr<Communicator> make_communicator(Seconds deadline) {
  const auto shared = std::make_shared<Deadline>(Deadline{deadline});
  return by_nccl() ? make_nccl_communicator(*group, shared, memory().queue(), gpu().shared) : make_mpi_communicator(Ranks::all, shared);
}

/// The communicators that must behave alike: all ranks, this host's, one that sends in pieces of 100003 bytes; or NCCL's.
std::vector<Communicator*> communicators() {
  if (by_nccl()) {
    static Communicator* const nccl = make_communicator(Seconds(30)).release();
    return {nccl};
  }
  static Communicator* const pieces = make_mpi_communicator(Ranks::all, std::make_shared<Deadline>(Deadline{Seconds(30)}), 100'003).release();
  return {&group->world(), &group->host(), pieces};  // never freed: that would be after MPI's end
}

Communicator& world() { return *communicators()[0]; }

/// `host`, where the communicators' tensors lie, and back.
Tensor put(const Tensor& host) { return up(memory(), host); }

Tensor get(const Tensor& t) {
  world().wait();
  return down(memory(), t);
}

/// Byte i of what rank r sends.
std::uint8_t byte_of(int r, std::size_t i) { return static_cast<std::uint8_t>((i * 7 + i / 251 + static_cast<std::size_t>(r) * 31 + 1) & 0xff); }

Tensor bytes_of_rank(DType dtype, Shape shape, int r) {
  const Tensor t = host_tensor(dtype, shape);
  for (std::size_t i = 0; i < t.bytes(); ++i) static_cast<std::uint8_t*>(t.raw())[i] = byte_of(r, i);
  return t;
}

bool equal(const Tensor& a, const Tensor& b) { return a.bytes() == b.bytes() && std::memcmp(a.raw(), b.raw(), a.bytes()) == 0; }

Tensor scribbled(DType dtype, Shape shape) {
  const Tensor t = host_tensor(dtype, shape);
  std::memset(t.raw(), 0xee, t.bytes());
  return t;
}

class Collectives : public ::testing::Test {
  void SetUp() override {
    try {
      memory();
      communicators();
    } catch (const Error& e) {
      if (e.fault() != Fault::usage) throw;
      GTEST_SKIP() << e.what();
    }
  }
};

TEST_F(Collectives, AllGatherBringsEveryRanksElements) {
  for (Communicator* comm : communicators()) {
    for (const DType dtype : all_dtypes) {
      for (const std::int64_t n : {0, 1, 5, 40'000}) {  // several pieces
        const Tensor out = put(scribbled(dtype, {comm->size(), n, 1}));
        comm->all_gather(put(bytes_of_rank(dtype, {n, 1}, comm->rank())), out);
        const Tensor all = get(out);
        for (int r = 0; r < comm->size(); ++r) {
          ASSERT_TRUE(equal(all.slice(r, r + 1), bytes_of_rank(dtype, {n}, r))) << name_of(dtype) << " n=" << n << " r=" << r;
        }
      }
    }
  }
}

TEST_F(Collectives, AllGatherOfScalarsAndInPlace) {
  for (Communicator* comm : communicators()) {
    const Tensor mine = scribbled(DType::i32, {comm->size()});
    mine.data<std::int32_t>()[comm->rank()] = comm->rank() * comm->rank() + 3;
    const Tensor out = put(mine);
    comm->all_gather(out.slice(comm->rank(), comm->rank() + 1).view({}), out);
    const Tensor all = get(out);
    for (int r = 0; r < comm->size(); ++r) EXPECT_EQ(all.data<std::int32_t>()[r], r * r + 3);
  }
}

TEST_F(Collectives, RaggedShardsFollowOneAnother) {
  for (Communicator* comm : communicators()) {
    for (const DType dtype : all_dtypes) {
      for (const std::int64_t scale : {0, 1, 3, 20'000}) {
        for (const int empty : {-1, 0, comm->size() - 1}) {
          std::vector<std::int64_t> counts;
          for (int r = 0; r < comm->size(); ++r) counts.push_back(r == empty ? 0 : scale * (1 + r % 2));
          const std::int64_t total = std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
          const Tensor out = put(scribbled(dtype, {total, 2}));
          comm->all_gather_ragged(put(bytes_of_rank(dtype, {counts[static_cast<std::size_t>(comm->rank())], 2}, comm->rank())), counts, out);
          const Tensor all = get(out);
          std::int64_t before = 0;
          for (int r = 0; r < comm->size(); ++r) {
            const std::int64_t count = counts[static_cast<std::size_t>(r)];
            ASSERT_TRUE(equal(all.slice(before, before + count), bytes_of_rank(dtype, {count, 2}, r))) << name_of(dtype) << " r=" << r;
            before += count;
          }
        }
      }
    }
  }
}

TEST_F(Collectives, BroadcastFromEveryRoot) {
  for (Communicator* comm : communicators()) {
    for (int root = 0; root < comm->size(); ++root) {
      for (const DType dtype : all_dtypes) {
        for (const std::int64_t n : {0, 1, 7, 40'000}) {
          const Tensor t = put(comm->rank() == root ? bytes_of_rank(dtype, {n}, root) : scribbled(dtype, {n}));
          comm->broadcast(t, root);
          ASSERT_TRUE(equal(get(t), bytes_of_rank(dtype, {n}, root))) << name_of(dtype) << " n=" << n << " root=" << root;
        }
      }
    }
  }
}

// Rank r sends r·3 + s (or none, where r + s is 3) rows to rank s; what rank r sends has its bytes from the count that s tells on.
TEST_F(Collectives, ExchangeBringsEveryRankItsRows) {
  for (Communicator* comm : communicators()) {
    const int size = comm->size(), rank = comm->rank();
    for (const DType dtype : all_dtypes) {
      for (const std::int64_t scale : {0, 1, 5'000}) {
        const auto count = [&](int from, int to) { return from + to == 3 ? 0 : scale * (from * 3 + to); };
        const auto rows = [&](int from, int to) { return bytes_of_rank(dtype, {count(from, to), 2}, from * 5 + to); };
        std::vector<std::int64_t> send, receive;
        for (int r = 0; r < size; ++r) {
          send.push_back(count(rank, r));
          receive.push_back(count(r, rank));
        }
        const Tensor in = host_tensor(dtype, {std::accumulate(send.begin(), send.end(), std::int64_t{0}), 2});
        std::int64_t before = 0;
        for (int r = 0; r < size; ++r) {
          const Tensor part = rows(rank, r);
          if (part.bytes() > 0) std::memcpy(in.slice(before, before + send[static_cast<std::size_t>(r)]).raw(), part.raw(), part.bytes());
          before += send[static_cast<std::size_t>(r)];
        }
        const Tensor out = put(scribbled(dtype, {std::accumulate(receive.begin(), receive.end(), std::int64_t{0}), 2}));
        comm->exchange(put(in), send, out, receive);
        const Tensor all = get(out);
        before = 0;
        for (int r = 0; r < size; ++r) {
          const std::int64_t end = before + receive[static_cast<std::size_t>(r)];
          ASSERT_TRUE(equal(all.slice(before, end), rows(r, rank))) << name_of(dtype) << " from " << r << " scale " << scale;
          before = end;
        }
      }
    }
  }
}

// Rank 1 waits for the last rank, which is late, and looks for roll calls meanwhile; what rank 0 sends in the next exchange is there already.
TEST_F(Collectives, AnEarlyMessageIsNoRollCall) {
  const int size = group->size(), late = size - 1;
  if (size < 3) GTEST_SKIP() << "needs three ranks";
  for (Communicator* comm : communicators()) {
    const int rank = comm->rank();
    const std::vector<std::int64_t> ones(static_cast<std::size_t>(size), 1);
    std::vector<std::int64_t> send(static_cast<std::size_t>(size)), receive(send);
    if (rank == late) send[1] = 1;
    if (rank == 1) receive[static_cast<std::size_t>(late)] = 1;
    const Tensor in = put(bytes_of_rank(DType::i64, {size}, rank)), out = put(scribbled(DType::i64, {size}));
    if (rank == late) std::this_thread::sleep_for(std::chrono::milliseconds(50));
    comm->exchange(in.slice(0, send[1]), send, out.slice(0, receive[static_cast<std::size_t>(late)]), receive);
    comm->exchange(in, ones, out, ones);
    const Tensor all = get(out);
    for (int r = 0; r < size; ++r) ASSERT_TRUE(equal(all.slice(r, r + 1), bytes_of_rank(DType::i64, {size}, r).slice(rank, rank + 1))) << r;
  }
}

template <typename T>
T value_of(int r, std::int64_t i) { return static_cast<T>((i * 5 + r * 3) % 101 + r); }

template <typename T>
void expect_reduced() {
  for (Communicator* comm : communicators()) {
    for (const std::int64_t n : {0, 1, 3, 150'000}) {
      for (const Reduce op : {Reduce::sum, Reduce::min, Reduce::max}) {
        const Tensor mine = host_tensor(DTypeOf<T>::value, {n});
        for (std::int64_t i = 0; i < n; ++i) mine.data<T>()[i] = value_of<T>(comm->rank(), i);
        const Tensor out = put(mine);
        comm->all_reduce(out, op);
        const Tensor t = get(out);
        for (std::int64_t i = 0; i < n; ++i) {
          T expected = value_of<T>(0, i);
          for (int r = 1; r < comm->size(); ++r) {
            const T other = value_of<T>(r, i);
            expected = op == Reduce::sum ? expected + other : op == Reduce::min ? std::min(expected, other) : std::max(expected, other);
          }
          ASSERT_EQ(t.data<T>()[i], expected) << name_of(DTypeOf<T>::value) << " op " << static_cast<int>(op) << " element " << i << " of " << n;
        }
      }
    }
  }
}

TEST_F(Collectives, AllReduceInt32) { expect_reduced<std::int32_t>(); }
TEST_F(Collectives, AllReduceInt64) { expect_reduced<std::int64_t>(); }
TEST_F(Collectives, AllReduceUint64) { expect_reduced<std::uint64_t>(); }
TEST_F(Collectives, AllReduceFloat32) { expect_reduced<float>(); }
TEST_F(Collectives, AllReduceFloat64) { expect_reduced<double>(); }

template <typename T>
std::vector<T> all_reduced(std::vector<T> mine, Reduce op) {
  const Tensor t = put(Tensor({}, mine.data(), DTypeOf<T>::value, {static_cast<std::int64_t>(mine.size())}));
  world().all_reduce(t, op);
  const Tensor all = get(t);
  return {all.span<T>().begin(), all.span<T>().end()};
}

TEST_F(Collectives, IntegerSumsWrap) {
  const std::int32_t most = std::numeric_limits<std::int32_t>::max();
  EXPECT_EQ(all_reduced<std::int32_t>({most}, Reduce::sum)[0], static_cast<std::int32_t>(static_cast<std::uint32_t>(group->size()) * 0x7fffffffu));
}

// 1e8 swallows the 1 next to it in float32: the sum tells in which order it was made.
TEST_F(Collectives, FloatSumsAreInRankOrderWhoeverComesFirst) {
  const float values[] = {1e8f, 1.0f, -1e8f, 1.0f};
  volatile float expected = values[0];
  for (int r = 1; r < group->size(); ++r) expected = expected + values[r % 4];
  for (int late = 0; late < group->size(); ++late) {
    if (group->rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    for (const float x : all_reduced(std::vector(3, values[group->rank() % 4]), Reduce::sum)) EXPECT_EQ(x, expected) << "rank " << late << " came last";
  }
}

TEST_F(Collectives, NanWinsEveryReduction) {
  for (int r = 0; r < group->size(); ++r) {
    for (const Reduce op : {Reduce::sum, Reduce::min, Reduce::max}) {
      EXPECT_TRUE(std::isnan(all_reduced<double>({group->rank() == r ? std::nan("") : group->rank()}, op)[0])) << "rank " << r << " has NaN";
    }
  }
}

TEST_F(Collectives, NobodyLeavesABarrierBeforeTheLastCame) {
  for (int late = 0; late < group->size(); ++late) {
    world().barrier();
    const auto begin = std::chrono::steady_clock::now();
    if (group->rank() == late) std::this_thread::sleep_for(std::chrono::milliseconds(200));
    world().barrier();
    EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(60)) << "rank " << late << " was late";
  }
}

template <typename Call>
void expect_usage_error(Call call, const std::string& words) {
  try {
    call();
    ADD_FAILURE() << "no error that says: " << words;
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), Fault::usage);
    EXPECT_THAT(e.what(), ::testing::HasSubstr(words));
  }
}

TEST_F(Collectives, ARankThatDoesNotComeIsNamed) {
  const int size = group->size(), absent = size - 1;
  if (size == 1) GTEST_SKIP() << "nobody to wait for";
  auto alone = make_communicator(Seconds(3));  // a quarter of it for the answers of ranks on a busy machine
  if (group->rank() != absent) {
    std::string error;
    try {
      alone->all_gather(put(scribbled(DType::f32, {3})), put(scribbled(DType::f32, {size, 3})));
    } catch (const Error& e) {
      error = e.what();
    }
    EXPECT_THAT(error, ::testing::HasSubstr("all_gather: rank " + std::to_string(group->rank())));
    EXPECT_THAT(error, ::testing::HasSubstr(fmt::format("for rank {}, which", absent)));
    EXPECT_THROW(alone->barrier(), Error) << "at once: the communicator can only be dropped";
  }
  group->world().barrier();
  if (group->rank() == absent) alone.release();  // the others have left it
}

TEST_F(Collectives, WrongShapesAreRefusedBeforeAnythingIsSent) {
  for (Communicator* comm : communicators()) {
    const std::int64_t n = comm->size();
    const Tensor row = put(scribbled(DType::f32, {3})), rows = put(scribbled(DType::f32, {n, 3}));
    const std::vector<std::int64_t> ones(static_cast<std::size_t>(n), 1);
    const auto wrong_out = [&](DType dtype, Shape shape) { return [=] { comm->all_gather(row, host_tensor(dtype, shape)); }; };
    expect_usage_error(wrong_out(DType::f64, {n, 3}), "all_gather: `in` is float32[3], but `out` is float64");
    expect_usage_error(wrong_out(DType::f32, {n, 4}), "`out` cannot be float32");
    expect_usage_error(wrong_out(DType::f32, {n + 1, 3}), "`out` cannot be float32");
    expect_usage_error(wrong_out(DType::f32, {n, 1, 3}), "`out` cannot be float32");
    expect_usage_error([&] { comm->all_gather(row, Tensor()); }, "`out` uint8[] has no memory");
    expect_usage_error([&] { comm->all_gather_ragged(host_tensor(DType::f32, {2, 3}), ones, rows); }, "its count is 1");
    expect_usage_error([&] { comm->all_gather_ragged(rows.slice(0, 1), ones, host_tensor(DType::f32, {n + 1, 3})); }, "all counts make");
    expect_usage_error([&] { comm->all_gather_ragged(rows.slice(0, 1), ones, host_tensor(DType::f32, {n, 2})); }, "all counts make");
    expect_usage_error([&] { comm->all_gather_ragged(row, std::vector<std::int64_t>(static_cast<std::size_t>(n + 1), 1), rows); }, "counts for");
    expect_usage_error([&] { comm->all_gather_ragged(row, std::vector<std::int64_t>(static_cast<std::size_t>(n), -1), rows); }, "negative, -1");
    expect_usage_error([&] { comm->all_reduce(host_tensor(DType::bf16, {3}), Reduce::sum); }, "all_reduce: bfloat16[3] is not among");
    expect_usage_error([&] { comm->broadcast(row, static_cast<int>(n)); }, "broadcast: there is no rank");
    expect_usage_error([&] { comm->broadcast(row, -1); }, "broadcast: there is no rank -1");
    std::vector<std::int64_t> more(ones), negative(ones);
    more.back() = 2;
    negative.back() = -1;
    expect_usage_error([&] { comm->exchange(rows, ones, host_tensor(DType::f64, {n, 3}), ones); }, "but `out` is float64");
    expect_usage_error([&] { comm->exchange(rows, ones, host_tensor(DType::f32, {n, 2}), ones); }, "`out` cannot be float32");
    expect_usage_error([&] { comm->exchange(rows, more, rows, ones); }, fmt::format("all counts make {}, `in` cannot be", n + 1));
    expect_usage_error([&] { comm->exchange(rows, ones, rows, more); }, fmt::format("all counts make {}, `out` cannot be", n + 1));
    expect_usage_error([&] { comm->exchange(rows, negative, rows, ones); }, "negative, -1");
    expect_usage_error([&] { comm->exchange(rows, std::span(ones).first(ones.size() - 1), rows, ones); }, "counts for");
    comm->all_gather(row, rows);  // and the communicator still works
  }
}

TEST(ProcessGroup, KnowsItsRanksAndHost) {
  EXPECT_EQ(group->rank(), group->world().rank());
  EXPECT_EQ(group->size(), group->world().size());
  EXPECT_EQ(group->local_rank(), group->host().rank());
  EXPECT_EQ(group->local_size(), group->host().size());
  const char* launched = std::getenv("OMPI_COMM_WORLD_SIZE");
  const char* on_host = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  EXPECT_EQ(group->size(), launched ? std::atoi(launched) : 1);
  EXPECT_EQ(group->local_rank(), on_host ? std::atoi(on_host) : 0);
}

TEST(ProcessGroup, TheFirstRanksAmongThemselves) {
  for (int n = 1; n <= group->size(); ++n) {
    const std::unique_ptr<Communicator> some = group->first(n);
    const bool in = group->rank() < n;
    ASSERT_EQ(some->size(), in ? n : group->size() - n);
    ASSERT_EQ(some->rank(), in ? group->rank() : group->rank() - n);
    const Tensor own = host_tensor(DType::i32, {1}), all = host_tensor(DType::i32, {some->size(), 1});
    own.data<std::int32_t>()[0] = group->rank();
    some->all_gather(own, all);
    for (int r = 0; r < some->size(); ++r) EXPECT_EQ(all.data<std::int32_t>()[r], in ? r : n + r);
  }
  EXPECT_THROW(group->first(0), Error);
  EXPECT_THROW(group->first(group->size() + 1), Error);
}

}  // namespace
}  // namespace kvmesh
