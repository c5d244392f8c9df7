// JSON files read strictly: config.json, the header of a safetensors file, the index of its shards.
#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace kvmesh {

/// The file's bytes; an Error names a file that cannot be read, is no regular file, or is longer than `max_bytes`.
std::string read_file(const std::filesystem::path& file, std::size_t max_bytes);

/// `text` as one JSON object, numbers as written. Refused, beyond what JSON forbids, is what two readers may understand
/// differently or what only an attack needs: a key twice in one object, a zero byte, nesting deeper than 16, over 4 million
/// values. An Error names `file` and the line.
nlohmann::json parse_json_object(std::string_view text, const std::filesystem::path& file);

/// A name from a file as an error message shows it: in quotes, without control characters, at most 100 bytes of it.
std::string shown(std::string_view name);

}  // namespace kvmesh
