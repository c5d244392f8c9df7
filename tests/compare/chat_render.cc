// Renders templates for chat_templates.py: a JSON object {"template", "variables"} a line in, {"text"} or {"error"} a line out.
#include "model/chat/template.h"
#include "runtime/check.h"

#include <iostream>

int main() {
  using Json = nlohmann::ordered_json;
  std::tm date{};
  date.tm_year = 126, date.tm_mon = 6, date.tm_mday = 26, date.tm_wday = 0, date.tm_yday = 206;
  for (std::string line; std::getline(std::cin, line);) {
    Json answer;
    try {
      const Json request = Json::parse(line);
      answer["text"] = kvmesh::Template(request["template"].get<std::string>(), "template").render(request["variables"], date);
    } catch (const kvmesh::Error& e) {
      answer = {{"error", e.what()}};
    }
    std::cout << answer.dump() << std::endl;
  }
}
