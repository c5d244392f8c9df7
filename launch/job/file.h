// Files that must survive a crash: descriptors, replacing a file at one stroke, syncing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>

namespace kvmesh {

/// Throws Fault::io with the file's name and errno.
[[noreturn]] void io_failed(const std::filesystem::path& file);

/// A file descriptor that closes itself. What fails is an Error (Fault::io) that names the file.
class File {
 public:
  /// `flags` as for open(2).
  File(std::filesystem::path name, int flags);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  int fd() const { return fd_; }
  const std::filesystem::path& name() const { return name_; }

  /// At the file's position, or at its end with O_APPEND.
  void write(std::string_view bytes) const;
  void write_at(std::int64_t offset, std::string_view bytes) const;
  /// Appends up to `length` bytes from `offset` on to `bytes`, fewer only at the end of the file; how many.
  std::int64_t read_at(std::int64_t offset, std::int64_t length, std::string& bytes) const;
  void truncate(std::int64_t length) const;
  void sync() const;

 private:
  std::filesystem::path name_;
  int fd_;
};

/// The value of an option that names a file; "" and "-" name none.
struct NamedFile {
  const char* option;
  std::filesystem::path file;
};
/// An Error (Fault::usage) where two of them are one regular file, or will be: one would be written over the other.
void check_distinct(std::initializer_list<NamedFile> files);

/// FILE.suffix, in FILE's folder.
std::filesystem::path beside(const std::filesystem::path& file, const char* suffix);
/// Makes renames and new names in the folder of `file` durable.
void sync_folder_of(const std::filesystem::path& file);
/// Replaces `file` by `text` so that at any time either the old or the new text is there.
void replace_file(const std::filesystem::path& file, const std::string& text);

}  // namespace kvmesh
