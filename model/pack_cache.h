// Packed weights in a file that later starts map instead of packing again. Never wrong weights: a file is used only if it names this
// checkpoint's content, this program, device and dtype, and every block of it has its hash.
#pragma once

#include "comm/process_group.h"

#include <filesystem>
#include <string>

namespace kvmesh {

/// A checkpoint's content, and the files' state when it was read.
struct Content {
  std::string hash;      ///< checkpoint_hash
  std::string state;     ///< a line a file: name, size, times, inode
  bool settled = false;  ///< the state is so old that no later write can have left it as it is
};

/// The content as `folder` remembers it, while the files' state is what it was; else worked out anew, and remembered if it is settled and can be.
Content content_of(const std::filesystem::path& checkpoint, const std::filesystem::path& folder, int threads);

/// One file of the folder: the packed weights of one checkpoint on one kind of device in one dtype. Named after these, so that what is stale is
/// replaced; appears complete or not at all; written by one process at a time.
class PackCache {
 public:
  /// `bytes` of packed weights; `tag` names what packs, `name` the device and dtype.
  PackCache(const std::filesystem::path& folder, const std::filesystem::path& checkpoint, const std::string& tag, const std::string& name, std::int64_t bytes, int threads);

  /// u8 [bytes], read-only, the same pages for all ranks of the host; undefined unless every host has a file that is right. Each rank checks a part.
  /// Collective over the group. A damaged file is told on standard error.
  Tensor open(ProcessGroup& group);

  /// Each host's first rank writes the file, unless the checkpoint may have changed since open. Collective; what goes wrong is told on standard
  /// error, and does no harm.
  void save(const Tensor& packed, ProcessGroup& group) const;

 private:
  Tensor open_part(int part, int parts) const;
  void write(const Tensor& packed) const;
  std::string key() const { return tag_ + " " + hash_ + " " + std::to_string(bytes_); }  // what the file must have been made of

  std::filesystem::path folder_, checkpoint_, file_;
  std::string tag_, hash_;
  std::int64_t bytes_;
  int threads_;
  Content content_;  // the host's first rank's, after open
};

}  // namespace kvmesh
