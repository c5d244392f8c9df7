// A chat template: the part of Jinja2 that these use, as transformers sets it up (trim_blocks, lstrip_blocks, loop controls, {% generation %}),
// in a sandbox with bounds. It sees the variables that it is given and nothing else.
#pragma once

#include <nlohmann/json.hpp>

#include <ctime>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

namespace kvmesh {

namespace jinja {
struct Node;
}

class Template {
 public:
  /// An Error that names `file` and the line for text that is no template or uses what is not supported.
  Template(std::string_view text, const std::filesystem::path& file);
  ~Template();
  Template(Template&&) noexcept;
  Template& operator=(Template&&) noexcept;

  /// What the template prints. `variables` is an object, its texts are UTF-8; `now` is what strftime_now tells. An Error with the file's name
  /// and the line for what Jinja would raise, what the template itself raises, what is not supported, and what takes too much work or memory
  /// (well below a second).
  std::string render(const nlohmann::ordered_json& variables, const std::tm& now) const;

 private:
  std::string name_;
  std::unique_ptr<const jinja::Node> root_;
};

}  // namespace kvmesh
