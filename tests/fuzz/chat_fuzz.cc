// Any text as a chat template: it ends with text that is UTF-8 or with an Error. What stands before a line of "===" is the template, what is behind it
// the variables as JSON.
#include "model/chat/template.h"

#include "model/utf8.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  using Json = nlohmann::ordered_json;
  std::string_view text = fuzz::text_of(data, size);
  Json variables = {{"messages", {{{"role", "user"}, {"content", "Hi"}}, {{"role", "assistant"}, {"content", {{{"type", "text"}, {"text", "é"}}}}}}}, {"tools", nullptr}, {"bos_token", "<s>"}, {"n", 7}};
  if (const std::size_t end = text.find("\n===\n"); end != text.npos) {
    const Json given = Json::parse(text.substr(end + 5), nullptr, false);
    if (given.is_object()) variables.update(given);
    text = text.substr(0, end);
  }
  fuzz::accepted([&] {
    const std::string out = Template(text, "fuzz.jinja").render(variables, {});
    fuzz::require(valid_utf8_prefix(out) == out.size());
  });
  return 0;
}
