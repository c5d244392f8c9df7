// Our linear beside oneDNN's matmul with packed weights, on the shapes of the seed's layers: which is faster at how many rows. Needs libdnnl-dev:
//   g++ -O2 -std=c++20 -I. tests/compare/linear_onednn.cc build/runtime/libkvmesh_runtime.a build/runtime/libkvmesh_cpu_kernels.so -Wl,-rpath,$PWD/build/runtime -ldnnl -lfmt -lpthread -o build/linear_onednn
#include "runtime/device.h"

#include <dnnl.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <vector>

using namespace kvmesh;

/// The least of some runs' seconds.
template <typename Body>
double best_seconds(const Body& body) {
  double best = 1e9;
  const auto begun = std::chrono::steady_clock::now();
  do {
    const auto from = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count());
  } while (std::chrono::steady_clock::now() - begun < std::chrono::milliseconds(700));
  return best;
}

int main() {
  const auto device = make_device("cpu", {});
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  std::printf("%s\n%6s %6s %6s %8s %12s %12s %7s\n", device->describe().c_str(), "m", "k", "n", "dtype", "own GFLOP/s", "oneDNN", "ratio");
  for (const DType dtype : {DType::bf16, DType::f32}) {
    const auto type = dtype == DType::bf16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
    for (const auto& [k, n] : {std::pair{768, 1536}, {768, 768}, {768, 3072}, {3072, 768}, {768, 50304}}) {
      for (const int m : {1, 4, 32, 256, 1024}) {
        if (n == 50304 && m > 32) continue;  // only last tokens meet the vocabulary
        const Tensor rows = host_tensor(DType::f32, {k, n}), x = host_tensor(dtype, {m, k}), out = host_tensor(dtype, {m, n});
        for (std::int64_t i = 0; i < rows.numel(); ++i) rows.data<float>()[i] = static_cast<float>(i % 17) * 0.01f;
        std::fill_n(static_cast<std::uint8_t*>(x.raw()), x.bytes(), std::uint8_t{0x3c});
        // As many copies of the weight as exceed the caches, visited in turn, as in a forward pass over layers.
        const std::size_t bytes = device->weight_bytes(dtype, k, n);
        const std::size_t copies = m >= 256 ? 1 : std::max<std::size_t>(1, (std::size_t{160} << 20) / bytes);
        std::vector<Weight> weights;
        for (std::size_t c = 0; c < copies; ++c) {
          weights.push_back({k, n, dtype, host_tensor(DType::u8, {static_cast<std::int64_t>(bytes)})});
          device->pack_weight(rows, dtype, weights.back().data.raw());
        }
        std::size_t turn = 0;
        const double own = best_seconds([&] {
          for (std::size_t c = 0; c < copies; ++c) device->linear(x, weights[turn++ % copies], Epilogue::none, out);
        }) / static_cast<double>(copies);

        const dnnl::memory::desc xd({m, k}, type, dnnl::memory::format_tag::ab), wd({k, n}, type, dnnl::memory::format_tag::any),
            od({m, n}, type, dnnl::memory::format_tag::ab);
        const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(xd, wd, od), engine);
        const dnnl::matmul matmul(description);
        dnnl::memory xm(xd, engine, x.raw()), om(od, engine, out.raw());
        std::vector<dnnl::memory> wm;
        for (std::size_t c = 0; c < copies; ++c) {
          wm.emplace_back(description.weights_desc(), engine);
          std::memset(wm.back().get_data_handle(), 0x3c, description.weights_desc().get_size());  // untouched pages would all be one page of zeros
        }
        const double other = best_seconds([&] {
          for (std::size_t c = 0; c < copies; ++c) matmul.execute(stream, {{DNNL_ARG_SRC, xm}, {DNNL_ARG_WEIGHTS, wm[turn++ % copies]}, {DNNL_ARG_DST, om}});
          stream.wait();
        }) / static_cast<double>(copies);
        const double work = 2e-9 * m * k * n;
        std::printf("%6d %6d %6d %8s %12.1f %12.1f %7.2f\n", m, k, n, std::string(name_of(dtype)).c_str(), work / own, work / other, other / own);
      }
    }
  }
}
