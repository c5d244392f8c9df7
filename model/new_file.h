// A file that appears under its name complete and on disk, or not at all.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace kvmesh {

/// A temporary file beside `target`, which takes its name in commit() and is otherwise removed. What fails is an Error (Fault::io) that names `target`.
class NewFile {
 public:
  explicit NewFile(const std::filesystem::path& target);
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(const void* data, std::size_t bytes);
  /// Flushes to disk and renames.
  void commit();

 private:
  void must(bool ok) const;

  std::filesystem::path target_;
  std::string name_;
  int fd_ = -1;
  bool done_ = false;
};

}  // namespace kvmesh
