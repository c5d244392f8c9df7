// The template, the system's message, the day.
#include "launch/job/chat.h"

#include <algorithm>

namespace kvmesh {

using Json = nlohmann::ordered_json;

Chat::Chat(const ChatOptions& options, const std::filesystem::path& checkpoint, const std::string& today)
    : template_(checkpoint, options.file), system_(options.system), now_(day_of(options.day.empty() ? today : options.day).value()) {}

std::string Chat::render(Json messages, const Json& tools, const Json& more) const {
  const auto is_system = [](const Json& m) { return m.is_object() && m.contains("role") && m["role"] == "system"; };
  if (system_ && messages.is_array() && std::none_of(messages.begin(), messages.end(), is_system)) messages.insert(messages.begin(), Json{{"role", "system"}, {"content", *system_}});
  return template_.render(std::move(messages), tools, more, now_);
}

std::string Chat::day() const { return template_.tells_date() ? fmt::format("{:04}-{:02}-{:02}", now_.tm_year + 1900, now_.tm_mon + 1, now_.tm_mday) : ""; }

}  // namespace kvmesh
