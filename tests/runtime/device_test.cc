// The factory, and the checks that every device makes: wrong dtypes, shapes and ranges are errors in words.
#include "tests/runtime/device_testing.h"

#include "runtime/cpu/isa.h"

#include <functional>

namespace kvmesh {
namespace {

void expect_error(const std::function<void()>& call, const std::string& words) {
  try {
    call();
    ADD_FAILURE() << "no error with: " << words;
  } catch (const Error& e) {
    EXPECT_EQ(e.fault(), Fault::usage);
    EXPECT_NE(std::string(e.what()).find(words), std::string::npos) << e.what();
  }
}

TEST(Device, Factory) {
  const auto two = make_device("cpu", {.threads = 2});
  EXPECT_EQ(two->describe(), fmt::format("cpu ({}, 2 threads)", cpu::isa_names[static_cast<int>(cpu::isa())]));
  EXPECT_NE(make_device("cpu", {.threads = 1})->describe().find("1 thread)"), std::string::npos);
  if (!KVMESH_WITH_CUDA) {
    EXPECT_NE(make_device("auto", {})->describe().find("cpu ("), std::string::npos);
    expect_error([] { make_device("cuda", {}); }, "--device cuda: this build has no CUDA");
  } else if (cuda::device_count() == 0) {
    EXPECT_NE(make_device("auto", {})->describe().find("cpu ("), std::string::npos);
    expect_error([] { make_device("cuda", {}); }, "--device cuda: no GPU answers");
  }
  expect_error([] { make_device("tpu", {}); }, "not one of cpu, cuda, auto");
  expect_error([] { make_device("cpu", {.threads = -1}); }, "threads");
}

TEST(Device, CopyNeedsEqualShapes) {
  const auto device = test_device();
  const Tensor a = random_tensor(DType::f32, {3, 4}, 1), b = device->empty(DType::f32, {3, 4});
  device->copy(a, b);
  EXPECT_TRUE(same_rows(a, 0, down(*device, b), 0, 3));
  EXPECT_TRUE(same_rows(a, 0, down(*device, device->resident(a)), 0, 3));
  expect_error([&] { device->copy(a, device->empty(DType::f32, {4, 3})); }, "float32[3, 4]");
  expect_error([&] { device->copy(a, device->empty(DType::bf16, {3, 4})); }, "bfloat16[3, 4]");
}

// Nobody waits in between: what one pass is told must still be there when its turn comes, however many have been told something since.
TEST(Device, PassesThatWaitForTheirTurnKeepWhatTheyWereTold) {
  const auto device = test_device();
  const Tensor table = random_tensor(DType::f32, {50, 4}, 1), there = up(*device, table);
  std::vector<std::vector<std::int32_t>> ids;
  std::vector<Tensor> outs;
  for (int i = 0; i < 6; ++i) {
    ids.push_back({7 * i, 3, i});
    outs.push_back(device->empty(DType::f32, {3, 4}));
    const Segment s{.start = 0, .begin = 0, .place = 0, .count = 3, .offset = 0};
    device->gather_rows(there, device->prepare(ids.back(), std::span(&s, 1), {}).ids, outs.back());
  }
  for (std::size_t i = 0; i < outs.size(); ++i) {
    const Tensor out = down(*device, outs[i]);
    for (std::int64_t r = 0; r < 3; ++r) EXPECT_TRUE(same_rows(table, ids[i][static_cast<std::size_t>(r)], out, r, 1)) << i << " " << r;
  }
}

TEST(Device, PassesTakeTheirTokensFromATensor) {
  const auto device = test_device();
  const Tensor table = random_tensor(DType::f32, {300, 4}, 1), tokens = host_tensor(DType::i32, {400});
  for (std::int32_t i = 0; i < 400; ++i) tokens.data<std::int32_t>()[i] = i * 31 % 300;
  const Tensor there = up(*device, table), drawn = up(*device, tokens);
  std::vector<std::int32_t> at;
  for (std::int32_t i = 0; i < 301; ++i) at.push_back((i * 17 + 5) % 400);
  const Segment s{.start = 0, .begin = 0, .place = 0, .count = 301, .offset = 0};
  const Tensor out = device->empty(DType::f32, {301, 4});
  device->gather_rows(there, device->prepare(at, std::span(&s, 1), {}, drawn).ids, out);
  const Tensor rows = down(*device, out);
  for (std::int32_t i = 0; i < 301; ++i) EXPECT_TRUE(same_rows(table, at[static_cast<std::size_t>(i)] * 31 % 300, rows, i, 1)) << i;
  at[300] = 400;
  expect_error([&] { device->prepare(at, std::span(&s, 1), {}, drawn); }, "token 300 is at 400 of 400");
  at[300] = -1;
  expect_error([&] { device->prepare(at, std::span(&s, 1), {}, drawn); }, "token 300 is at -1 of 400");
  expect_error([&] { device->prepare({}, {}, {}, there); }, "prepare: the tokens is float32[300, 4], expected int32");
}

// As it was when it was asked for, whatever has been enqueued since, and whether or not earlier ones were waited for.
TEST(Device, DownloadsComeInTheirOrder) {
  const auto device = test_device();
  if (!device->queue()) GTEST_SKIP() << "nothing is enqueued";
  const Tensor table = random_tensor(DType::f32, {50, 4}, 1), there = up(*device, table), out = device->empty(DType::f32, {1, 4});
  std::vector<std::unique_ptr<Download>> downloads;
  for (std::int32_t i = 0; i < 20; ++i) {
    const Segment s{.start = 0, .begin = 0, .place = 0, .count = 1, .offset = 0};
    device->gather_rows(there, device->prepare(std::span(&i, 1), std::span(&s, 1), {}).ids, out);
    downloads.push_back(device->download(out));
    if (i >= 3 && i % 3 == 0) downloads[static_cast<std::size_t>(i) - 2] = nullptr;  // let go of, and its memory used again
  }
  for (std::int32_t i = 0; i < 20; ++i) {
    const auto& d = downloads[static_cast<std::size_t>(i)];
    EXPECT_TRUE(!d || same_rows(table, i, d->wait(), 0, 1)) << i;
  }
  EXPECT_EQ(device->download(device->empty(DType::f32, {0, 4}))->wait().numel(), 0);
}

// What a GPU would answer with a fault, so that no test passes that reads a device's memory as the host's.
TEST(DeviceDeathTest, TheHostDoesNotTouchTheEmulatedDevicesMemory) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer looks after it";
#endif
  if (!emulated()) GTEST_SKIP() << "no emulator";
  const auto device = test_device();
  const Tensor t = device->empty(DType::f32, {4});
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile float*>(t.raw())), "");
  device->copy(host_tensor(DType::f32, {4}), t);
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile float*>(t.raw())), "");
}

TEST(Device, EmptyBatchesAreNoWork) {
  const auto device = test_device();
  const Tensor none = device->empty(DType::f32, {0, 4});
  device->norm(none, {1e-5f}, device->empty(DType::f32, {0, 4}));
  device->gather_rows(random_tensor(DType::f32, {3, 4}, 1), device->empty(DType::i32, {0}), none);
}

TEST(Device, LinearChecks) {
  const auto device = test_device();
  const auto weight = [&](DType dtype, std::int64_t k, std::int64_t n) {
    return Weight{k, n, dtype, device->empty(DType::u8, {static_cast<std::int64_t>(device->weight_bytes(dtype, k, n))})};
  };
  const Tensor x = random_tensor(DType::bf16, {2, 6}, 1);
  const auto out = [&](DType dtype, std::int64_t rows, std::int64_t n) { return device->empty(dtype, {rows, n}); };
  expect_error([&] { device->linear(x, weight(DType::f32, 6, 8), Epilogue::none, out(DType::f32, 2, 8)); }, "x is bfloat16[2, 6], expected float32[2, 6]");
  expect_error([&] { device->linear(x, weight(DType::bf16, 7, 8), Epilogue::none, out(DType::f32, 2, 8)); }, "expected bfloat16[2, 7]");
  expect_error([&] { device->linear(x, weight(DType::bf16, 6, 8), Epilogue::none, out(DType::bf16, 3, 8)); }, "out is bfloat16[3, 8]");
  expect_error([&] { device->linear(x, weight(DType::bf16, 6, 8), Epilogue::soft_cap, out(DType::f32, 2, 8), 0); }, "soft cap");
  Weight short_one = weight(DType::bf16, 6, 8);
  short_one.data = device->empty(DType::u8, {4});
  expect_error([&] { device->linear(x, short_one, Epilogue::none, out(DType::f32, 2, 8)); }, "the packed weight is uint8[4]");
  Weight biased = weight(DType::bf16, 6, 8);
  biased.bias = device->empty(DType::f32, {6});
  expect_error([&] { device->linear(x, biased, Epilogue::none, out(DType::f32, 2, 8)); }, "the bias is float32[6], expected float32[8]");
  expect_error([&] { device->weight_bytes(DType::f64, 2, 2); }, "a weight is float32 or bfloat16, not float64");
  expect_error([&] { device->linear(x, Weight{}, Epilogue::none, out(DType::f32, 2, 8)); }, "linear: x");
  Tensor undefined;
  expect_error([&] { device->norm(undefined, {1e-5f}, undefined); }, "norm: x is nothing");
}

TEST(Device, SegmentChecks) {
  const auto device = test_device();
  const LayerCache cache{filled(DType::f32, {2, 1, 8, 4}, 0), filled(DType::f32, {2, 1, 8, 4}, 0)}, there{up(*device, cache.k), up(*device, cache.v)};
  const Tensor q = filled(DType::f32, {3, 8}, 0), out = filled(DType::f32, {3, 8}, 0), qkv = filled(DType::f32, {3, 16}, 0);
  const auto run = [&](Segment s) {
    return [&, s] { device->attention(up(*device, q), device->prepare({}, std::span(&s, 1), {}), there, -1, up(*device, out)); };
  };
  EXPECT_NO_THROW(run({.start = 8, .begin = 13, .place = 1, .count = 3, .offset = 0})());
  expect_error(run({.start = 8, .begin = 14, .place = 1, .count = 3, .offset = 0}), "not within a ring of 8");
  expect_error(run({.start = 8, .begin = 7, .place = 1, .count = 3, .offset = 0}), "starts at 8");
  expect_error(run({.start = 8, .begin = 8, .place = 2, .count = 3, .offset = 0}), "place 2 of 2");
  expect_error(run({.start = 8, .begin = 8, .place = 0, .count = 3, .offset = 1}), "rows [1, 1 + 3) of 3");
  expect_error(run({.start = 8, .begin = 8, .place = 0, .count = 0, .offset = 1}), "segment 0");
  const Segment s{.start = 8, .begin = 8, .place = 0, .count = 3, .offset = 0};
  const Pass segments = device->prepare({}, std::span(&s, 1), {});
  expect_error([&] { device->norm_rope_append(q, segments, {}, {1e-5f}, q, cache); }, "qkv is float32[3, 8], expected float32[3, 16]");
  expect_error([&] { device->norm_rope_append(qkv, segments, filled(DType::f32, {8, 3}, 0), {1e-5f}, q, cache); }, "expected float32[8, 4]");
  expect_error([&] { device->attention(filled(DType::f32, {3, 6}, 0), segments, cache, -1, out); }, "do not fit 1 key heads of 4");
  expect_error([&] { device->attention(filled(DType::bf16, {3, 8}, 0), segments, cache, -1, out); }, "expected float32[3, 8]");
  expect_error([&] { device->copy_rows(cache, 0, 0, 0, 0, 1); }, "expected two different ones");
  expect_error([&] { device->copy_rows(cache, 0, 0, 1, 0, 9); }, "9 positions");
  const LayerCache odd{cache.k, filled(DType::f32, {2, 1, 7, 4}, 0)};
  expect_error([&] { device->attention(q, segments, odd, -1, out); }, "the value cache is float32[2, 1, 7, 4]");
}

}  // namespace
}  // namespace kvmesh
