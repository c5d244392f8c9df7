// The keys of a JSON object, each checked for type and range, and none left over.
#pragma once

#include "model/json_file.h"
#include "runtime/check.h"

#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace kvmesh {

/// Remembers which keys were asked for. Errors name the file and the key.
class ConfigKeys {
  using json = nlohmann::json;

 public:
  /// `nulls`: a key whose value is null counts as absent, and is_null tells it.
  ConfigKeys(json object, std::string file, bool nulls = false) : file_(std::move(file)), object_(std::move(object)) {
    for (auto it = object_.begin(); nulls && it != object_.end();) {
      if (it->is_null()) nulls_.insert(it.key());
      it = it->is_null() ? object_.erase(it) : std::next(it);
    }
  }
  bool is_null(const char* key) const { return nulls_.contains(key); }

  /// The value, or null if the key is absent.
  const json* find(const char* key) {
    known_.insert(key);
    const auto found = object_.find(key);
    return found == object_.end() ? nullptr : &*found;
  }

  std::int64_t whole(const char* key, std::int64_t least, std::int64_t most, const std::int64_t* fallback = nullptr) {
    const json* value = find(key);
    check(value || fallback, "{}: the key \"{}\" is missing", file_, key);
    if (!value) return *fallback;
    return whole(*value, shown(key), least, most);
  }

  std::int64_t whole(const json& value, const std::string& what, std::int64_t least, std::int64_t most) const {
    const bool fits = value.is_number_unsigned() ? value.get<std::uint64_t>() <= static_cast<std::uint64_t>(most) : value.is_number_integer();
    check(fits && value.get<std::int64_t>() >= least && value.get<std::int64_t>() <= most, "{}: {} must be a whole number from {} to {}", file_,
          what, least, most);
    return value.get<std::int64_t>();
  }

  double real(const char* key, double fallback, bool zero_allowed) {
    const json* value = find(key);
    if (!value) return fallback;
    const bool ok = value->is_number() && std::isfinite(value->get<double>()) && value->get<double>() >= 0;
    check(ok && (zero_allowed || value->get<float>() > 0), "{}: \"{}\" must be a number {} 0", file_, key, zero_allowed ? "not below" : "above");
    return value->get<double>();
  }

  bool flag(const char* key, bool fallback) {
    const json* value = find(key);
    check(!value || value->is_boolean(), "{}: \"{}\" must be true or false", file_, key);
    return value ? value->get<bool>() : fallback;
  }

  std::string text(const char* key, const char* fallback) {
    const json* value = find(key);
    check(!value || value->is_string(), "{}: \"{}\" must be text", file_, key);
    return value ? value->get<std::string>() : fallback;
  }

  /// A key whose only understood value is `only`.
  void must_be(const char* key, const json& only) {
    const json* value = find(key);
    if (value && *value != only) refuse(fmt::format("\"{}\" is {}, and kvmesh has only {}", key, shown(value->dump()), only.dump()));
  }

  /// Something that is not understood, for check_all_known to tell.
  void refuse(std::string what) { refused_.push_back(std::move(what)); }

  /// An Error for all that was refused and the keys that nobody asked for; a key that begins with "_" is a comment.
  void check_all_known() const {
    std::string all;
    const auto add = [&](const std::string& what) { all += (all.empty() ? "" : "; ") + what; };
    for (const std::string& what : refused_) add(what);
    std::string unknown;
    int more = 0;
    for (const auto& [key, value] : object_.items()) {
      if (known_.contains(key) || key.starts_with('_')) continue;
      if (unknown.size() < 300) unknown += (unknown.empty() ? "" : ", ") + shown(key);
      else ++more;
    }
    if (more > 0) unknown += fmt::format(" and {} more", more);
    if (!unknown.empty()) add(fmt::format("the key {} is not known; a comment's key begins with \"_\"", unknown));
    check(all.empty(), "{}: {}", file_, all);
  }

  const std::string& file() const { return file_; }

 private:
  std::string file_;
  json object_;
  std::set<std::string> known_, nulls_;
  std::vector<std::string> refused_;
};

}  // namespace kvmesh
