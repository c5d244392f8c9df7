// Token shards: checks, one fast scan, writing.
#include "model/train/shards.h"

#include "model/new_file.h"
#include "runtime/check.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>

namespace kvmesh {

namespace fs = std::filesystem;

namespace {

using Header = std::array<std::int32_t, 256>;
constexpr std::int32_t magic = 20240520, version = 1;

}  // namespace

TokenShard::TokenShard(const fs::path& file) : path_(file) {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // does not wait for a pipe's writer
  check(fd >= 0, "{}: {}", file.string(), std::strerror(errno));
  const std::unique_ptr<const int, void (*)(const int*)> closed(&fd, [](const int* f) { close(*f); });
  struct stat status {};
  check(fstat(fd, &status) == 0, "{}: {}", file.string(), std::strerror(errno));
  check(S_ISREG(status.st_mode), "{}: not a regular file", file.string());
  size_ = static_cast<std::size_t>(status.st_size);
  check(size_ >= sizeof(Header), "{}: {} bytes are too few for a token shard, whose header has {}", file.string(), size_, sizeof(Header));
  void* mapped = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  check(mapped != MAP_FAILED, "{}: cannot be mapped: {}", file.string(), std::strerror(errno));
  data_ = {static_cast<const std::byte*>(mapped), [n = size_](const std::byte* p) { munmap(const_cast<std::byte*>(p), n); }};

  Header header;
  std::memcpy(header.data(), mapped, sizeof header);
  check(header[0] == magic, "{}: not a token shard: it begins with {}, not {}", file.string(), header[0], magic);
  check(header[1] == version, "{}: a token shard of version {}; only version {} is known", file.string(), header[1], version);
  const std::int64_t count = header[2], bytes = static_cast<std::int64_t>(sizeof header) + 2 * count;
  check(count >= 0 && bytes == static_cast<std::int64_t>(size_), "{}: the header says {} tokens, which would make {} bytes, but the file has {}", file.string(), count,
        bytes, size_);
  tokens_ = {reinterpret_cast<const std::uint16_t*>(data_.get() + sizeof header), static_cast<std::size_t>(count)};
}

std::vector<std::int32_t> TokenShard::find(std::int32_t token, std::int64_t vocab_size) const {
  constexpr std::size_t block = 512;
  auto* const pages = const_cast<std::byte*>(data_.get());
  madvise(pages, size_, MADV_SEQUENTIAL);
  const auto largest = static_cast<std::uint16_t>(std::clamp<std::int64_t>(vocab_size - 1, 0, shard_vocab_limit - 1));
  const auto wanted = static_cast<std::uint16_t>(token);
  std::vector<std::int32_t> found;
  for (std::size_t begin = 0; begin < tokens_.size(); begin += block) {
    const std::span<const std::uint16_t> part = tokens_.subspan(begin, std::min(block, tokens_.size() - begin));
    std::uint16_t here = 0, beyond = 0;  // two flags that the compiler keeps in vectors
    for (const std::uint16_t id : part) {
      here |= static_cast<std::uint16_t>(id == wanted);
      beyond |= static_cast<std::uint16_t>(id > largest);
    }
    if (beyond) {
      const auto at = static_cast<std::size_t>(std::find_if(part.begin(), part.end(), [&](std::uint16_t id) { return id > largest; }) - part.begin());
      fail(Fault::usage, "{}: token {} has id {}, but the vocabulary has {}", path_.string(), begin + at, part[at], vocab_size);
    }
    for (std::size_t i = 0; here && i < part.size(); ++i) {
      if (part[i] == wanted) found.push_back(static_cast<std::int32_t>(begin + i));
    }
  }
  madvise(pages, size_, MADV_DONTNEED);  // they stay in the page cache
  madvise(pages, size_, MADV_NORMAL);
  return found;
}

void TokenShard::will_read(std::int64_t begin, std::int64_t end) const {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t from = (sizeof(Header) + 2 * static_cast<std::size_t>(begin)) / page * page, to = sizeof(Header) + 2 * static_cast<std::size_t>(end);
  madvise(const_cast<std::byte*>(data_.get()) + from, to - from, MADV_WILLNEED);
}

std::vector<fs::path> find_shards(const fs::path& where) {
  std::vector<fs::path> files;
  if (fs::is_directory(where)) {
    for (const auto& entry : fs::directory_iterator(where)) {
      if (entry.path().extension() == ".bin") files.push_back(entry.path());
    }
  } else {
    glob_t matches{};
    if (glob(where.c_str(), GLOB_NOSORT, nullptr, &matches) == 0) files.assign(matches.gl_pathv, matches.gl_pathv + matches.gl_pathc);
    globfree(&matches);
  }
  check(!files.empty(), "{}: there are no token shards{}", where.string(), fs::is_directory(where) ? " (*.bin)" : "");
  std::sort(files.begin(), files.end());
  return files;
}

void write_shard(const fs::path& file, std::span<const std::uint16_t> tokens) {
  check(tokens.size() <= static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()), "{}: {} tokens are too many for one shard", file.string(), tokens.size());
  Header header{};
  header[0] = magic;
  header[1] = version;
  header[2] = static_cast<std::int32_t>(tokens.size());
  NewFile out(file);
  out.write(header.data(), sizeof header);
  out.write(tokens.data(), tokens.size_bytes());
  out.commit();
}

}  // namespace kvmesh
