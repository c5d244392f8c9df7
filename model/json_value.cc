// JSON values by their place.
#include "model/json_value.h"

#include "model/json_file.h"
#include "runtime/check.h"

#include <algorithm>

namespace kvmesh {
namespace {

const nlohmann::json null;

}  // namespace

void JsonValue::refuse(std::string_view why) const { fail(Fault::usage, "{}: {} {}", file_.string(), shown(path()), why); }

std::string JsonValue::path() const { return index_ ? fmt::format("{}[{}]", path_, *index_) : path_; }

bool JsonValue::boolean() const {
  if (!value_.is_boolean()) refuse("is not true or false");
  return value_.get<bool>();
}

const std::string& JsonValue::string() const {
  if (!value_.is_string()) refuse("is not a string");
  return value_.get_ref<const std::string&>();
}

std::int32_t JsonValue::integer(std::int32_t least, std::int32_t most) const {
  const bool small = value_.is_number_unsigned() ? value_.get<std::uint64_t>() <= INT32_MAX : value_.is_number_integer();
  if (!small || value_.get<std::int64_t>() < least || value_.get<std::int64_t>() > most) refuse(fmt::format("is not a whole number from {} to {}", least, most));
  return value_.get<std::int32_t>();
}

std::size_t JsonValue::list_size() const {
  if (!value_.is_array()) refuse("is not a list");
  return value_.size();
}

JsonValue JsonValue::operator[](std::string_view key) const {
  if (!value_.is_object()) refuse("is not an object");
  const auto found = value_.find(std::string(key));
  return {found == value_.end() ? null : *found, file_, path().empty() ? std::string(key) : fmt::format("{}.{}", path(), key)};
}

JsonValue JsonValue::operator[](std::size_t index) const { return {value_[index], file_, path(), index}; }

void JsonValue::only(std::initializer_list<std::string_view> keys) const {
  if (!value_.is_object()) refuse("is not an object");
  for (const auto& [key, value] : value_.items()) {
    if (std::find(keys.begin(), keys.end(), key) == keys.end()) (*this)[key].refuse("is not known here");
  }
}

}  // namespace kvmesh
