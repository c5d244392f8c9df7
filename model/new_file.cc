// Write, flush, rename, flush the folder.
#include "model/new_file.h"

#include "runtime/check.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace kvmesh {

NewFile::NewFile(const std::filesystem::path& target) : target_(target), name_(target.string() + ".tmp-" + std::to_string(getpid())) {
  fd_ = open(name_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  must(fd_ >= 0);
}

NewFile::~NewFile() {
  if (fd_ >= 0) close(fd_);
  if (!done_) unlink(name_.c_str());
}

void NewFile::write(const void* data, std::size_t bytes) {
  const auto* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, p, bytes);
    if (n < 0 && errno == EINTR) continue;
    must(n > 0);
    p += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

void NewFile::commit() {
  must(fsync(fd_) == 0);
  must(rename(name_.c_str(), target_.c_str()) == 0);
  done_ = true;
  const auto parent = target_.parent_path();
  const int folder = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  must(folder >= 0);
  const bool flushed = fsync(folder) == 0;
  close(folder);
  must(flushed);
}

void NewFile::must(bool ok) const {
  if (!ok) fail(Fault::io, "{}: cannot be written: {}", target_.string(), std::strerror(errno));
}

}  // namespace kvmesh
