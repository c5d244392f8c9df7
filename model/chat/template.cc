// From text to syntax to text.
#include "model/chat/template.h"

#include "model/chat/machine.h"
#include "model/utf8.h"
#include "runtime/check.h"

namespace kvmesh {

Template::Template(std::string_view text, const std::filesystem::path& file) : name_(file.filename().string()) {
  check(valid_utf8_prefix(text) == text.size(), "{}: is not UTF-8 text", file.string());
  int line = 1;
  try {
    root_ = jinja::parse(text, line);
  } catch (const jinja::Rejected& e) {
    fail(Fault::usage, "{}, line {}: {}", file.string(), line, e.message);
  }
}

Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

std::string Template::render(const nlohmann::ordered_json& variables, const std::tm& now) const {
  jinja::Machine machine(now);
  try {
    return machine.render(*root_, variables);
  } catch (const jinja::Rejected& e) {
    const std::string_view message = std::string_view(e.message).substr(0, jinja::byte_of(e.message, 1000));
    fail(Fault::usage, "{}, line {}: {}", name_, machine.line(), message);
  }
}

}  // namespace kvmesh
