// How long weights take to be ready, beside what memory allows, in one run: reading the checkpoint's bytes from the page cache with all threads,
// copying them to fresh memory of the kind that ranks share, load_weights, and load_weights with a pack cache, first and again.
// For one rank; CACHE-FOLDER is emptied:
//   build/load CHECKPOINT CACHE-FOLDER REPEATS
#include "model/checkpoint.h"
#include "model/hash.h"
#include "runtime/cpu/thread_pool.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace kvmesh;

int main(int argc, char** argv) {
  ProcessGroup group(argc, argv, std::chrono::seconds(60));
  const std::filesystem::path checkpoint = argv[1], cache = argv[2];
  const ModelConfig config = read_config(checkpoint / "config.json");
  const std::unique_ptr<Device> device = make_device("cpu", {});
  const int threads = cpu::available_cpus();
  cpu::ThreadPool pool(threads);
  const auto file = weight_files(checkpoint)[0];
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(file));
  const int fd = open(file.c_str(), O_RDONLY);
  constexpr std::int64_t block = 1 << 20;
  const auto mapped = [&](auto body) {
    const auto pages = map_file(fd, bytes, PROT_READ);
    pool.parallel_for(bytes / block, 4, [&](std::int64_t begin, std::int64_t end) {
      std::byte* const from = static_cast<std::byte*>(pages.get()) + begin * block;
      madvise(from, static_cast<std::size_t>((end - begin) * block), MADV_POPULATE_READ);
      body(from, begin * block, static_cast<std::size_t>((end - begin) * block));
    });
  };
  const std::vector<std::pair<const char*, std::function<void()>>> runs = {
      {"hash from the page cache", [&] { mapped([](const std::byte* from, std::int64_t, std::size_t n) { hash_bytes({from, n}, 0); }); }},
      {"copy to shared memory",
       [&] {
         const int memory = memfd_create("load", MFD_CLOEXEC);
         if (ftruncate(memory, bytes) != 0) std::abort();
         const auto to = map_file(memory, bytes, PROT_READ | PROT_WRITE);
         mapped([&](const std::byte* from, std::int64_t at, std::size_t n) { std::memcpy(static_cast<std::byte*>(to.get()) + at, from, n); });
         close(memory);
       }},
      {"load_weights", [&] { load_weights(checkpoint, config, config.dtype, *device, group); }},
      {"checkpoint_hash", [&] { checkpoint_hash(checkpoint, threads); }},
      {"first start with a cache",
       [&] {
         std::filesystem::remove_all(cache);
         load_weights(checkpoint, config, config.dtype, *device, group, {0, cache, ""});
       }},
      {"second start with a cache", [&] { load_weights(checkpoint, config, config.dtype, *device, group, {0, cache, ""}); }},
  };
  std::vector<std::vector<double>> times(runs.size());
  for (int repeat = 0; repeat <= std::atoi(argv[3]); ++repeat) {
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const auto begin = std::chrono::steady_clock::now();
      runs[i].second();
      if (repeat > 0) times[i].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
  }
  std::printf("%.2f GB, %s\n", static_cast<double>(bytes) / 1e9, device->describe().c_str());
  for (std::size_t i = 0; i < runs.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    std::printf("%-28s %6.3f s (%.3f to %.3f)\n", runs[i].first, times[i][times[i].size() / 2], times[i].front(), times[i].back());
  }
}
