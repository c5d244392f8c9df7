// A main for fuzz targets where there is no libFuzzer (gcc): mutates seed inputs, the same way every time for the same -seed.
// It takes libFuzzer's own options, so that one CTest line serves both. It knows nothing of coverage: the seeds have to be good.
#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

using Bytes = std::vector<std::uint8_t>;
namespace fs = std::filesystem;

struct Options {
  std::uint64_t runs = UINT64_MAX;        ///< inputs at most, the unchanged seeds not counted
  std::uint64_t max_total_time = 0;       ///< seconds; 0: no limit
  std::uint64_t seed = 1;
  std::uint64_t max_len = 1 << 16;        ///< bytes of a mutated input
  std::string artifact = "fuzz-input";    ///< holds the input that runs; left behind only by a crash or a hang
};

Bytes read(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(in), {});
}

/// Every file named, and every file below a directory named, in an order that does not depend on the file system.
std::vector<Bytes> read_seeds(const std::vector<fs::path>& paths) {
  std::vector<fs::path> files;
  for (const auto& path : paths) {
    if (!fs::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    const auto first = static_cast<std::ptrdiff_t>(files.size());
    for (const auto& entry : fs::recursive_directory_iterator(path)) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    std::sort(files.begin() + first, files.end());
  }
  std::vector<Bytes> seeds;
  for (const auto& file : files) seeds.push_back(read(file));
  if (seeds.empty()) seeds.emplace_back();
  return seeds;
}

class Mutator {
 public:
  Mutator(const std::vector<Bytes>& seeds, std::uint64_t seed, std::size_t max_len) : seeds_(seeds), random_(seed), max_len_(max_len) {}

  /// A seed with one to eight changes.
  Bytes next() {
    Bytes bytes = seeds_[below(seeds_.size())];
    for (std::size_t n = 1 + below(8); n > 0; --n) change(bytes);
    if (bytes.size() > max_len_) bytes.resize(max_len_);
    return bytes;
  }

 private:
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(random_() % n); }
  std::uint8_t byte() { return static_cast<std::uint8_t>(random_()); }
  auto at(Bytes& bytes, std::size_t i) { return bytes.begin() + static_cast<std::ptrdiff_t>(i); }

  /// A short stretch in most cases, any stretch in some.
  std::pair<std::size_t, std::size_t> part(const Bytes& bytes) {
    const std::size_t begin = below(bytes.size() + 1);
    const std::size_t longest = bytes.size() - begin;
    const std::size_t length = below(below(4) == 0 ? longest + 1 : std::min<std::size_t>(longest, 8) + 1);
    return {begin, begin + length};
  }

  void change(Bytes& bytes) {
    static constexpr std::uint8_t odd[] = {0, 1, ' ', '\t', '\n', '\r', '"', '-', '0', '9', '=', '[', '\\', '{', 0x7f, 0x80, 0xc2, 0xed, 0xf0, 0xff};
    static constexpr std::string_view numbers[] = {"-1", "4294967295", "4294967296", "9223372036854775807", "18446744073709551615", "1e999", "0x1"};
    const auto [begin, end] = part(bytes);
    switch (below(10)) {
      case 0:  // flip a bit
        if (begin < bytes.size()) bytes[begin] ^= static_cast<std::uint8_t>(1u << below(8));
        break;
      case 1:  // any byte
        if (begin < bytes.size()) bytes[begin] = byte();
        break;
      case 2:  // a byte that formats care about
        if (begin < bytes.size()) bytes[begin] = odd[below(std::size(odd))];
        break;
      case 3: bytes.insert(at(bytes, begin), odd[below(std::size(odd))]); break;
      case 4: bytes.insert(at(bytes, begin), 1 + below(300), byte()); break;
      case 5: bytes.erase(at(bytes, begin), at(bytes, end)); break;
      case 6: bytes.resize(begin); break;
      case 7: {  // a stretch twice
        const Bytes copy(at(bytes, begin), at(bytes, end));
        bytes.insert(at(bytes, below(bytes.size() + 1)), copy.begin(), copy.end());
        break;
      }
      case 8: {  // a stretch of any seed
        Bytes other = seeds_[below(seeds_.size())];
        const auto [first, last] = part(other);
        bytes.insert(at(bytes, begin), at(other, first), at(other, last));
        break;
      }
      default: {  // a number at the edge of a type, in place of a stretch
        const std::string_view number = numbers[below(std::size(numbers))];
        bytes.erase(at(bytes, begin), at(bytes, end));
        bytes.insert(at(bytes, begin), number.begin(), number.end());
      }
    }
  }

  const std::vector<Bytes>& seeds_;
  std::mt19937_64 random_;
  std::size_t max_len_;
};

/// Runs the target on an allocation of exactly the input's size, so that AddressSanitizer sees a read past its end.
void run(const Bytes& input, const std::string& artifact) {
  std::ofstream(artifact, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<std::streamsize>(input.size()));
  const Bytes exact(input.begin(), input.end());
  LLVMFuzzerTestOneInput(exact.data(), exact.size());
}

bool parse(std::string_view arg, std::string_view name, std::uint64_t& value) {
  if (!arg.starts_with(name)) return false;
  arg.remove_prefix(name.size());
  const auto [end, error] = std::from_chars(arg.data(), arg.data() + arg.size(), value);
  return error == std::errc() && end == arg.data() + arg.size();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  std::vector<fs::path> paths;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (parse(arg, "-runs=", options.runs) || parse(arg, "-max_total_time=", options.max_total_time) ||
        parse(arg, "-seed=", options.seed) || parse(arg, "-max_len=", options.max_len)) {
      continue;
    }
    if (arg.starts_with("-exact_artifact_path=")) {
      options.artifact = arg.substr(arg.find('=') + 1);
    } else if (arg.starts_with("-") || !fs::exists(arg)) {
      std::fprintf(stderr, "%s: neither a file nor one of -runs=N -max_total_time=SECONDS -seed=N -max_len=N -exact_artifact_path=FILE\n", argv[i]);
      return 1;
    } else {
      paths.emplace_back(arg);
    }
  }
  const auto seeds = read_seeds(paths);
  for (const auto& seed : seeds) run(seed, options.artifact);
  Mutator mutator(seeds, options.seed, static_cast<std::size_t>(options.max_len));
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t runs = 0;
  for (; runs < options.runs; ++runs) {
    if (options.max_total_time > 0 && std::chrono::steady_clock::now() - start >= std::chrono::seconds(options.max_total_time)) break;
    run(mutator.next(), options.artifact);
  }
  fs::remove(options.artifact);
  std::printf("%llu mutated inputs from %zu seeds\n", static_cast<unsigned long long>(runs), seeds.size());
}
