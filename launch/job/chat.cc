// The template, the system's message, the day.
#include "launch/job/chat.h"

#include <algorithm>
#include <ctime>

namespace kvmesh {

using Json = nlohmann::ordered_json;

std::optional<std::tm> day_of(const std::string& text) {
  constexpr std::string_view form = "0000-00-00";
  for (std::size_t i = 0; i < form.size(); ++i) {
    if (text.size() != form.size() || (form[i] == '-' ? text[i] != '-' : text[i] < '0' || text[i] > '9')) return std::nullopt;
  }
  std::tm day{};
  day.tm_year = std::stoi(text.substr(0, 4)) - 1900, day.tm_mon = std::stoi(text.substr(5, 2)) - 1, day.tm_mday = std::stoi(text.substr(8));
  const std::tm asked = day;
  ::timegm(&day);  // also finds the day of the week
  return day.tm_year == asked.tm_year && day.tm_mon == asked.tm_mon && day.tm_mday == asked.tm_mday ? std::optional(day) : std::nullopt;
}

Chat::Chat(const ChatOptions& options, const std::filesystem::path& checkpoint, const std::string& today)
    : template_(checkpoint, options.file), system_(options.system), now_(day_of(options.day.empty() ? today : options.day).value()) {}

std::string Chat::render(Json messages, const Json& tools, const Json& more) const {
  const auto is_system = [](const Json& m) { return m.is_object() && m.contains("role") && m["role"] == "system"; };
  if (system_ && messages.is_array() && std::none_of(messages.begin(), messages.end(), is_system)) messages.insert(messages.begin(), Json{{"role", "system"}, {"content", *system_}});
  return template_.render(std::move(messages), tools, more, now_);
}

std::string Chat::day() const { return template_.tells_date() ? fmt::format("{:04}-{:02}-{:02}", now_.tm_year + 1900, now_.tm_mon + 1, now_.tm_mday) : ""; }

}  // namespace kvmesh
