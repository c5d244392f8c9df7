// JSON files read strictly: limits and the place of an error.
#include "model/json_file.h"

#include "runtime/check.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <utility>
#include <vector>

namespace kvmesh {
namespace {

constexpr std::size_t max_depth = 16, max_values = 4'000'000;

std::size_t line_of(std::string_view text, std::size_t byte) {
  const auto end = text.begin() + static_cast<std::ptrdiff_t>(std::min(byte, text.size()));
  return 1 + static_cast<std::size_t>(std::count(text.begin(), end, '\n'));
}

/// Makes the value of what the parser finds, and looks for what is refused.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
  using json = nlohmann::json;

 public:
  Builder(std::string_view text, const std::filesystem::path& file) : text_(text), file_(file) {}

  json take() { return std::move(root_); }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(json::number_integer_t value) override { return add(value); }
  bool number_unsigned(json::number_unsigned_t value) override { return add(value); }
  bool number_float(json::number_float_t value, const std::string&) override { return add(value); }
  bool string(std::string& value) override { return add(std::move(value)); }
  bool binary(json::binary_t&) override { return false; }
  bool start_object(std::size_t) override { return open(json::value_t::object); }
  bool start_array(std::size_t) override { return open(json::value_t::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(std::string& key) override {
    count();
    const auto [place, is_new] = open_.back()->get_ref<json::object_t&>().try_emplace(std::move(key));
    if (!is_new) fail(Fault::usage, "{}: the key {} stands twice in one JSON object", file_.string(), shown(place->first));
    last_ = &place->second;
    return true;
  }

  bool parse_error(std::size_t byte, const std::string&, const json::exception& e) override {
    check(dynamic_cast<const json::parse_error*>(&e) == nullptr, "{}, line {}: not valid JSON at byte {}", file_.string(), line_of(text_, byte), byte);
    fail(Fault::usage, "{}: a JSON number is too large", file_.string());
  }

 private:
  void count() {
    if (++values_ > max_values) fail(Fault::usage, "{}: over {} JSON values", file_.string(), max_values);
  }

  bool add(json value) {
    count();
    if (open_.empty()) last_ = &root_;
    else if (open_.back()->is_array()) last_ = &open_.back()->get_ref<json::array_t&>().emplace_back();
    *last_ = std::move(value);
    return true;
  }

  bool open(json::value_t type) {
    check(open_.size() < max_depth, "{}: JSON nested deeper than {}", file_.string(), max_depth);
    add(type);
    open_.push_back(last_);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  const std::filesystem::path& file_;
  json root_;
  std::vector<json*> open_;   // objects and lists that have not ended
  json* last_ = nullptr;      // the value of the last key, or the last value
  std::size_t values_ = 0;    // and keys
};

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
  // The parser takes a zero byte for the end of the text.
  const std::size_t zero = text.find('\0');
  check(zero == text.npos, "{}, line {}: a zero byte in the JSON text", file.string(), line_of(text, zero));

  Builder builder(text, file);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  nlohmann::json object = builder.take();
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
