// tiktoken's text format for ranks: a line a token, its bytes in base64, a space, its rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

/// Ids lie below this (four times the largest vocabulary in use), so that a hostile file cannot ask for any amount of memory.
inline constexpr std::int32_t rank_limit = 1 << 20;

struct TiktokenFile {
  std::vector<std::string_view> tokens;  ///< [rank], empty where no token has that rank; in `bytes`
  std::size_t count;                     ///< tokens that are not empty
  std::vector<char> bytes;
};

/// Lines may come in any order and end in \n or \r\n; empty lines are skipped; ranks may have gaps. Anything else that is not the
/// format, a rank or a token that occurs twice, or one of the 256 single bytes missing is an Error naming file and line.
TiktokenFile read_tiktoken_file(const std::filesystem::path& file);

}  // namespace kvmesh
