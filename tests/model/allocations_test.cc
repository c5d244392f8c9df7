// A decode step on the CPU asks for no memory once one of its size has run: the forward pass, and drawing from its logits.
#include "model/gpt.h"

#include "tests/runtime/test_device.h"
#include "twin.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
constexpr bool counted = false;  // it has an allocator of its own
#else
constexpr bool counted = true;
namespace {
std::atomic<std::int64_t> allocations = 0;
}
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t n) { return ++allocations, __libc_malloc(n); }
void* calloc(std::size_t n, std::size_t size) { return ++allocations, __libc_calloc(n, size); }
void* realloc(void* p, std::size_t n) { return ++allocations, __libc_realloc(p, n); }
void* aligned_alloc(std::size_t alignment, std::size_t n) { return ++allocations, __libc_memalign(alignment, n); }
}
#endif

namespace kvmesh {
namespace {

std::int64_t count() {
#if defined(__SANITIZE_ADDRESS__)
  return 0;
#else
  return allocations;
#endif
}

TEST(Allocations, a_decode_step_makes_none) {
  if (!counted) GTEST_SKIP() << "AddressSanitizer has an allocator of its own";
  const std::int64_t before_one = count();
  void* volatile some = std::malloc(3);
  std::free(some);
  EXPECT_EQ(count(), before_one + 1) << "they are counted";

  ModelConfig c;
  c.seqlen = 64, c.vocab_size = 5000, c.d_emb = 48, c.num_layers = 2, c.q_heads = 4, c.kv_heads = 2, c.local_window_size = 9;
  c.window_pattern = std::string("SL");
  constexpr std::int64_t rows = 3;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto device = make_device("cpu", {.threads = 2});
    const Gpt gpt(c, dtype, test::pack(c, dtype, test::random_weights(c, dtype, 1), *device), *device);
    const KvCache cache(*device, c, dtype, rows, c.seqlen);
    Gpt::Workspace workspace(gpt, 16);
    const Tensor logits = device->empty(DType::f32, {rows, c.vocab_size});
    const SampleOut out{device->empty(DType::i32, {rows}), device->empty(DType::f32, {rows, 3}), device->empty(DType::i32, {rows, 2})};
    SampleRow draws[rows];
    draws[1].temperature = 0.8f, draws[1].top_k = 20;
    draws[2].temperature = 1.2f, draws[2].top_p = 0.9f, draws[2].min_p = 0.01f;
    const std::int32_t tokens[rows] = {1, 2, 3}, wanted[rows] = {0, 1, 2};
    // Until every thread has had a part of each kind of work, which is chance, steps may ask for some; then 30 in a row must not.
    std::int64_t quiet = 0;
    for (std::int64_t t = 0; t < 3000 && quiet < 30; ++t) {
      const std::int64_t before = count();
      Segment segments[rows];
      for (std::int32_t r = 0; r < rows; ++r) segments[r] = {64 + t - r - t % 50, 64 + t, r, 1, r};
      gpt.forward(tokens, segments, wanted, cache, workspace, logits);
      device->sample(logits, draws, out);
      quiet = count() == before ? quiet + 1 : 0;
    }
    EXPECT_EQ(quiet, 30) << name_of(dtype);
  }
}

}  // namespace
}  // namespace kvmesh
