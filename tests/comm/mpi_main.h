// main of a test that runs on several ranks: every rank runs all tests, rank 0 reports as usual, the others report their failures,
// and all leave with the same exit code. Included once by a *_mpi_test.cc.
#pragma once

#include "comm/process_group.h"

#include <gtest/gtest.h>

#include <cstdio>

namespace kvmesh::testing {

inline ProcessGroup* group = nullptr;  // alive while the tests run

/// What ranks other than 0 print.
class FailurePrinter final : public ::testing::EmptyTestEventListener {
  void OnTestPartResult(const ::testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "[rank %d] %s:%d: %s\n", group->rank(), result.file_name() ? result.file_name() : "?", result.line_number(), result.message());
  }
};

inline int run_on_all_ranks(int argc, char** argv) {
  ProcessGroup ranks(argc, argv, std::chrono::seconds(30));
  group = &ranks;
  ::testing::InitGoogleTest(&argc, argv);
  if (ranks.rank() != 0) {
    auto& listeners = ::testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new FailurePrinter);
  }
  const Tensor code = host_tensor(DType::i32, {1});
  try {
    code.data<std::int32_t>()[0] = RUN_ALL_TESTS();
    ranks.world().all_reduce(code, Reduce::max);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "[rank %d] %s\n", ranks.rank(), e.what());
    ranks.abort(1);
  }
  return code.data<std::int32_t>()[0];
}

}  // namespace kvmesh::testing

int main(int argc, char** argv) { return kvmesh::testing::run_on_all_ranks(argc, argv); }
