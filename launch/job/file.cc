// POSIX files.
#include "launch/job/file.h"

#include "runtime/check.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace kvmesh {

namespace fs = std::filesystem;

void io_failed(const fs::path& file) { fail(Fault::io, "{}: {}", file.string(), std::strerror(errno)); }

File::File(fs::path name, int flags) : name_(std::move(name)), fd_(::open(name_.c_str(), flags | O_CLOEXEC, 0666)) {
  if (fd_ < 0) io_failed(name_);
}

File::~File() { ::close(fd_); }

void File::write(std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) io_failed(name_);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
}

void File::write_at(std::int64_t offset, std::string_view bytes) const {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(fd_, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) io_failed(name_);
    bytes.remove_prefix(static_cast<std::size_t>(n));
    offset += n;
  }
}

std::int64_t File::read_at(std::int64_t offset, std::int64_t length, std::string& bytes) const {
  const std::size_t had = bytes.size();
  bytes.resize(had + static_cast<std::size_t>(length));
  std::int64_t got = 0;
  while (got < length) {
    const ssize_t n = ::pread(fd_, bytes.data() + had + got, static_cast<std::size_t>(length - got), offset + got);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) io_failed(name_);
    if (n == 0) break;
    got += n;
  }
  bytes.resize(had + static_cast<std::size_t>(got));
  return got;
}

void File::truncate(std::int64_t length) const {
  if (::ftruncate(fd_, length) != 0) io_failed(name_);
}

void File::sync() const {
  if (::fdatasync(fd_) != 0) io_failed(name_);
}

void check_distinct(std::initializer_list<NamedFile> files) {
  const auto same = [](const fs::path& a, const fs::path& b) {
    std::error_code unknown;
    if (fs::exists(a, unknown) && fs::exists(b, unknown)) return fs::is_regular_file(a, unknown) && fs::equivalent(a, b, unknown);
    return fs::absolute(a).lexically_normal() == fs::absolute(b).lexically_normal();
  };
  for (const NamedFile& one : files) {
    if (one.file.empty() || one.file == "-") continue;
    for (const NamedFile* other = files.begin(); other != &one; ++other) {
      check(other->file.empty() || !same(one.file, other->file), "--{} {}: is the file of --{}", one.option, one.file.string(), other->option);
    }
  }
}

fs::path beside(const fs::path& file, const char* suffix) { return file.string() + suffix; }

void sync_folder_of(const fs::path& file) {
  const fs::path folder = file.has_parent_path() ? file.parent_path() : fs::path(".");
  File(folder, O_RDONLY | O_DIRECTORY).sync();
}

void replace_file(const fs::path& file, const std::string& text) {
  const fs::path temporary = beside(file, ".tmp");
  {
    const File out(temporary, O_WRONLY | O_CREAT | O_TRUNC);
    out.write(text);
    out.sync();
  }
  if (::rename(temporary.c_str(), file.c_str()) != 0) io_failed(file);
}

}  // namespace kvmesh
