// Token shards: files of token ids as modded-nanogpt writes them. 256 int32 (20240520, 1, the number of tokens, zeros), then uint16 tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

namespace kvmesh {

/// The widest vocabulary whose ids fit into a shard.
inline constexpr std::int64_t shard_vocab_limit = 65536;

/// A file, mapped; it must not be truncated meanwhile. The constructor holds the header against the file's size. An Error names the file.
class TokenShard {
 public:
  explicit TokenShard(const std::filesystem::path& file);

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::uint16_t> tokens() const { return tokens_; }

  /// Where `token` stands, ascending. One pass over the file, whose pages are then given back; an Error unless all ids are below `vocab_size`.
  std::vector<std::int32_t> find(std::int32_t token, std::int64_t vocab_size) const;
  /// Tokens [begin, end) will be read soon: the system may begin to fetch them.
  void will_read(std::int64_t begin, std::int64_t end) const;

 private:
  std::filesystem::path path_;
  std::shared_ptr<const std::byte> data_;  // the whole file
  std::size_t size_ = 0;                   // bytes
  std::span<const std::uint16_t> tokens_;
};

/// The shards that `where` means, sorted: the *.bin files of a folder, or the files that a pattern as of a shell matches (a plain name matches
/// itself). An Error if there is none.
std::vector<std::filesystem::path> find_shards(const std::filesystem::path& where);

/// Complete, on disk, or not at all. An Error (Fault::io) names the file.
void write_shard(const std::filesystem::path& file, std::span<const std::uint16_t> tokens);

}  // namespace kvmesh
