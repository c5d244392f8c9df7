// The file: the packed bytes, the hash of each block, the key, a footer with their sizes and hash.
#include "model/pack_cache.h"

#include "model/checkpoint.h"
#include "model/hash.h"
#include "runtime/cpu/thread_pool.h"
#include "runtime/say.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <vector>

namespace kvmesh {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t block_bytes = 1 << 20;
constexpr std::int64_t settled_ns = 2'000'000'000;  // a file that changed later than so long ago may change again within the clock's tick
constexpr std::int64_t hash_digits = 32;

struct Footer {
  char magic[8] = {'k', 'v', 'm', 'p', 'a', 'c', 'k', '1'};
  std::int64_t bytes = 0, key_bytes = 0;
  std::uint64_t hash = 0;  // of the blocks' hashes, the key, and the footer with 0 here
};

/// Owned by the scope; closing gives its lock up.
struct File {
  int fd;
  ~File() {
    if (fd >= 0) close(fd);
  }
};

std::int64_t blocks_of(std::int64_t bytes) { return (bytes + block_bytes - 1) / block_bytes; }

std::uint64_t hash_of_block(const void* data, std::int64_t bytes, std::int64_t block) {
  const std::int64_t begin = block * block_bytes;
  return hash_bytes({static_cast<const std::byte*>(data) + begin, static_cast<std::size_t>(std::min(block_bytes, bytes - begin))}, static_cast<std::uint64_t>(block));
}

std::uint64_t hash_of_end(std::span<const std::uint64_t> hashes, std::string_view key, Footer footer) {
  footer.hash = 0;
  return hash_of(std::span(reinterpret_cast<const std::byte*>(&footer), sizeof footer), hash_of(key, hash_of(hashes, 0)));
}

/// Whether all bytes came.
bool read_at(int fd, void* to, std::size_t bytes, std::int64_t offset) {
  while (bytes > 0) {
    const ssize_t n = pread(fd, to, bytes, offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    to = static_cast<char*>(to) + n;
    bytes -= static_cast<std::size_t>(n);
    offset += n;
  }
  return true;
}

void must(bool ok, const fs::path& file) { check(ok, "{}: {}", file.string(), std::strerror(errno)); }

void write_all(int fd, const void* from, std::size_t bytes, const fs::path& file) {
  while (bytes > 0) {
    const ssize_t n = ::write(fd, from, bytes);
    if (n < 0 && errno == EINTR) continue;
    must(n > 0, file);
    from = static_cast<const char*>(from) + n;
    bytes -= static_cast<std::size_t>(n);
  }
}

/// A name for files about the checkpoint: its folder's, and a hash of the path.
std::string stem_of(const fs::path& checkpoint) {
  std::error_code unknown;
  fs::path path = fs::weakly_canonical(checkpoint, unknown);
  if (!path.has_filename()) path = path.parent_path();
  return fmt::format("{}-{:016x}", path.filename().string(), hash_of(path.string(), 0));
}

/// A line a file: name, size, times, inode; `newest`: the latest change, in ns since 1970.
std::string state_of(const fs::path& checkpoint, std::int64_t& newest) {
  std::string lines;
  newest = 0;
  for (const fs::path& file : checkpoint_files(checkpoint)) {
    struct stat s = {};
    must(stat(file.c_str(), &s) == 0, file);
    const auto ns = [](const timespec& t) { return t.tv_sec * 1'000'000'000 + t.tv_nsec; };
    lines += fmt::format("{} {} {} {} {}\n", file.filename().string(), s.st_size, ns(s.st_mtim), ns(s.st_ctim), s.st_ino);
    newest = std::max({newest, ns(s.st_mtim), ns(s.st_ctim)});
  }
  return lines;
}

}  // namespace

Content content_of(const fs::path& checkpoint, const fs::path& folder, int threads) {
  const fs::path record = folder / (stem_of(checkpoint) + ".seen");
  const auto with_hash = [](const Content& c) { return fmt::format("{}{}\n{:016x}\n", c.state, c.hash, hash_of(c.hash, hash_of(c.state, 0))); };
  Content content;
  std::int64_t newest = 0;
  const std::int64_t now = std::chrono::nanoseconds(std::chrono::system_clock::now().time_since_epoch()).count();
  content.state = state_of(checkpoint, newest);
  content.settled = now - newest > settled_ns;
  if (const File file{::open(record.c_str(), O_RDONLY | O_CLOEXEC)}; file.fd >= 0) {
    std::string text(content.state.size() + hash_digits + 1 + 16 + 1, '\0');
    struct stat s = {};
    if (fstat(file.fd, &s) == 0 && s.st_size == std::ssize(text) && read_at(file.fd, text.data(), text.size(), 0)) {
      content.hash = text.substr(content.state.size(), hash_digits);
      if (text == with_hash(content)) return content;
    }
  }
  content.hash = checkpoint_hash(checkpoint, threads);
  content.settled = content.settled && state_of(checkpoint, newest) == content.state;
  if (content.settled) {
    try {
      fs::create_directories(folder);
      write_file(record, with_hash(content));
    } catch (const std::exception&) {  // it is only worked out again next time
    }
  }
  return content;
}

PackCache::PackCache(const fs::path& folder, const fs::path& checkpoint, const std::string& tag, const std::string& name, std::int64_t bytes, int threads)
    : folder_(folder), checkpoint_(checkpoint), tag_(tag + " " + name), bytes_(bytes), threads_(threads) {
  std::string plain = name;
  std::replace(plain.begin(), plain.end(), '/', '-');
  std::replace(plain.begin(), plain.end(), ' ', '-');
  file_ = folder / fmt::format("{}.{}.pack", stem_of(checkpoint), plain);
}

Tensor PackCache::open_part(int part, int parts) const {
  const File file{::open(file_.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) return {};
  struct stat s = {};
  must(fstat(file.fd, &s) == 0, file_);
  const std::string wanted = key();
  Footer footer;
  std::vector<std::uint64_t> hashes(static_cast<std::size_t>(blocks_of(bytes_)));
  const auto damaged = [&] { return fmt::format("{}: is damaged, and made anew", file_.string()); };
  const std::int64_t footer_at = s.st_size - std::ssize(std::as_bytes(std::span(&footer, 1)));
  check(footer_at >= 0 && read_at(file.fd, &footer, sizeof footer, footer_at) && std::memcmp(footer.magic, Footer().magic, sizeof footer.magic) == 0, "{}", damaged());
  if (footer.bytes != bytes_ || footer.key_bytes != std::ssize(wanted)) return {};  // stale
  const std::int64_t hashes_bytes = std::ssize(hashes) * std::ssize(std::as_bytes(std::span(&hashes[0], 1)));
  std::string key(wanted.size(), '\0');
  check(footer_at == bytes_ + hashes_bytes + footer.key_bytes && read_at(file.fd, hashes.data(), static_cast<std::size_t>(hashes_bytes), bytes_) &&
            read_at(file.fd, key.data(), key.size(), bytes_ + hashes_bytes) && footer.hash == hash_of_end(hashes, key, footer),
        "{}", damaged());
  if (key != wanted) return {};  // stale

  std::shared_ptr<void> pages = map_file(file.fd, bytes_, PROT_READ);
  must(pages != nullptr, file_);
  void* const p = pages.get();
  Tensor mapped(std::move(pages), p, DType::u8, {bytes_});
  std::atomic<bool> right = true;
  cpu::ThreadPool pool(threads_);
  const std::int64_t blocks = std::ssize(hashes), begin = blocks * part / parts, end = blocks * (part + 1) / parts;
  pool.parallel_for(end - begin, 8, [&](std::int64_t first, std::int64_t last) {
    madvise(static_cast<std::byte*>(p) + (begin + first) * block_bytes, static_cast<std::size_t>(std::min((last - first) * block_bytes, bytes_ - (begin + first) * block_bytes)), MADV_POPULATE_READ);
    for (std::int64_t b = begin + first; b < begin + last; ++b) {
      if (hash_of_block(p, bytes_, b) != hashes[static_cast<std::size_t>(b)]) right = false;
    }
  });
  check(right, "{}", damaged());
  return mapped;
}

Tensor PackCache::open(ProcessGroup& group) {
  work_on_host(group, 1, [&](int) { content_ = content_of(checkpoint_, folder_, threads_); });
  hash_ = content_.hash;
  hash_.resize(hash_digits);
  group.host().broadcast({nullptr, hash_.data(), DType::u8, {hash_digits}}, 0);
  Tensor mapped;
  std::string trouble;
  work_on_host(group, group.local_size(), [&](int part) {
    try {
      mapped = open_part(part, group.local_size());
    } catch (const std::exception& e) {
      trouble = e.what();
    }
  });
  std::int64_t teller = trouble.empty() ? group.local_size() : group.local_rank(), all = mapped.defined();
  group.host().all_reduce({nullptr, &teller, DType::i64, {1}}, Reduce::min);
  if (teller == group.local_rank()) say("kvmesh: {}\n", trouble);
  group.world().all_reduce({nullptr, &all, DType::i64, {1}}, Reduce::min);
  return all ? mapped : Tensor();
}

void PackCache::write(const Tensor& packed) const {
  std::int64_t newest = 0;
  if (!content_.settled || state_of(checkpoint_, newest) != content_.state) return;  // these may be another content's weights
  fs::create_directories(folder_);
  fs::path partial = file_;
  partial += ".partial";
  const File file{::open(partial.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666)};
  must(file.fd >= 0, partial);
  if (flock(file.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return;  // another job writes it
  struct stat ours = {}, named = {};
  must(fstat(file.fd, &ours) == 0, partial);
  if (stat(partial.c_str(), &named) != 0 || ours.st_ino != named.st_ino) return;  // another job has just finished it
  try {
    must(ftruncate(file.fd, 0) == 0, partial);  // what a job that was killed left
    std::vector<std::uint64_t> hashes(static_cast<std::size_t>(blocks_of(bytes_)));
    cpu::ThreadPool(threads_).parallel_for(std::ssize(hashes), 8, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) hashes[static_cast<std::size_t>(b)] = hash_of_block(packed.raw(), bytes_, b);
    });
    const std::string made_of = key();
    Footer footer;
    footer.bytes = bytes_;
    footer.key_bytes = std::ssize(made_of);
    footer.hash = hash_of_end(hashes, made_of, footer);
    write_all(file.fd, packed.raw(), static_cast<std::size_t>(bytes_), partial);
    write_all(file.fd, hashes.data(), std::as_bytes(std::span(hashes)).size(), partial);
    write_all(file.fd, made_of.data(), made_of.size(), partial);
    write_all(file.fd, &footer, sizeof footer, partial);
    must(fsync(file.fd) == 0, partial);
    must(rename(partial.c_str(), file_.c_str()) == 0, partial);
  } catch (...) {
    unlink(partial.c_str());
    throw;
  }
}

void PackCache::save(const Tensor& packed, ProcessGroup& group) const {
  work_on_host(group, 1, [&](int) {
    try {
      write(packed);
    } catch (const std::exception& e) {
      say("kvmesh: the packed weights are not kept for the next start: {}\n", e.what());
    }
  });
}

}  // namespace kvmesh
