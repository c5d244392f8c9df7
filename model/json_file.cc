// JSON files read strictly: limits and the place of an error.
#include "model/json_file.h"

#include "runtime/check.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <unordered_set>
#include <vector>

namespace kvmesh {
namespace {

constexpr int max_depth = 16;
constexpr std::size_t max_values = 4'000'000;

std::size_t line_of(std::string_view text, std::size_t byte) {
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(byte, text.size()));
  return 1 + static_cast<std::size_t>(std::count(text.begin(), end, '\n'));
}

}  // namespace

std::string read_file(const std::filesystem::path& file, std::size_t max_bytes) {
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  check(!error && std::filesystem::exists(status), "{}: {}", file.string(), error ? error.message() : std::strerror(ENOENT));
  check(std::filesystem::is_regular_file(status), "{}: not a regular file", file.string());
  std::ifstream stream(file, std::ios::binary);
  check(stream.good(), "{}: cannot be opened: {}", file.string(), std::strerror(errno));
  std::string text;
  char buffer[1 << 14];
  while (stream.read(buffer, sizeof buffer) || stream.gcount() > 0) {
    text.append(buffer, static_cast<std::size_t>(stream.gcount()));
    check(text.size() <= max_bytes, "{}: longer than {} bytes", file.string(), max_bytes);
  }
  check(stream.eof(), "{}: cannot be read: {}", file.string(), std::strerror(errno));
  return text;
}

nlohmann::json parse_json_object(std::string_view text, const std::filesystem::path& file) {
  using nlohmann::json;
  // The parser takes a zero byte for the end of the text.
  const std::size_t zero = text.find('\0');
  check(zero == text.npos, "{}, line {}: a zero byte in the JSON text", file.string(), line_of(text, zero));

  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  std::size_t values = 0;
  const auto watch = [&](int depth, json::parse_event_t event, const json& parsed) {
    check(depth <= max_depth, "{}: JSON nested deeper than {}", file.string(), max_depth);
    switch (event) {
      case json::parse_event_t::object_start: keys.emplace_back(); break;
      case json::parse_event_t::object_end: keys.pop_back(); break;
      case json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        check(keys.back().insert(key).second, "{}: the key {} stands twice in one JSON object", file.string(), shown(key));
        break;
      }
      default: break;
    }
    check(++values <= max_values, "{}: over {} JSON values", file.string(), max_values);
    return true;
  };
  json object;
  try {
    object = json::parse(text.begin(), text.end(), watch);
  } catch (const json::parse_error& e) {
    fail(Fault::usage, "{}, line {}: not valid JSON at byte {}", file.string(), line_of(text, e.byte), e.byte);
  } catch (const json::exception&) {
    fail(Fault::usage, "{}: a JSON number is too large", file.string());
  }
  check(object.is_object(), "{}: expected a JSON object, found {}", file.string(), object.type_name());
  return object;
}

std::string shown(std::string_view name) {
  constexpr std::size_t longest = 100;
  std::string s = "\"";
  for (const char c : name.substr(0, longest)) s += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return s + (name.size() > longest ? "…\"" : "\"");
}

}  // namespace kvmesh
