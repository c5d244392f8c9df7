// A value in a JSON file that knows where it stands, so that an error can name it: "model.merges[3]".
#pragma once

#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

namespace kvmesh {

/// Refers to the JSON and to the file's name, which the caller keeps alive.
class JsonValue {
 public:
  JsonValue(const nlohmann::json& value, const std::filesystem::path& file, std::string path = "", std::optional<std::size_t> index = {})
      : value_(value), file_(file), path_(std::move(path)), index_(index) {}

  const nlohmann::json& json() const { return value_; }
  bool is_null() const { return value_.is_null(); }

  // Each is an Error that names the value if it is of another kind.
  bool boolean() const;
  const std::string& string() const;
  std::int32_t integer(std::int32_t least, std::int32_t most) const;
  std::size_t list_size() const;

  /// The member; null if there is none. An Error if this is no object.
  JsonValue operator[](std::string_view key) const;
  JsonValue operator[](std::size_t index) const;
  /// An Error if this is no object or has a member that is not named here.
  void only(std::initializer_list<std::string_view> keys) const;

  /// An Error: the file's name, the value's place in it, and `why`: "is not …".
  [[noreturn]] void refuse(std::string_view why) const;

 private:
  std::string path() const;

  const nlohmann::json& value_;
  const std::filesystem::path& file_;
  std::string path_;                  // of the list, if there is an index, which is written only where somebody asks for it
  std::optional<std::size_t> index_;
};

}  // namespace kvmesh
