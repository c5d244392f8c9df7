// Finding, reading and feeding a chat template.
#include "model/chat/chat_template.h"

#include "model/json_file.h"
#include "runtime/check.h"

namespace kvmesh {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char *template_name = "chat_template.jinja", *config_name = "tokenizer_config.json", *tokens_name = "special_tokens_map.json";
constexpr std::size_t most_bytes = std::size_t{1} << 26;

nlohmann::json read_object(const fs::path& file) { return fs::exists(file) ? parse_json_object(read_file(file, most_bytes), file) : nlohmann::json::object(); }

// A message as transformers hands it on: without nulls, and one of the names for its reasoning is two of them, "thinking" first.
Json normalized(const Json& message) {
  Json reasoning, out = Json::object();
  for (const char* name : {"reasoning", "thinking", "reasoning_content"}) {
    if (const auto found = message.find(name); found != message.end() && !found->is_null()) reasoning = *found;
  }
  if (!reasoning.is_null()) out["thinking"] = reasoning;
  for (const auto& [key, value] : message.items()) {
    if (!value.is_null()) out[key] = value;
  }
  if (!reasoning.is_null()) out["reasoning_content"] = reasoning;
  return out;
}

void check_objects(const Json& list, const char* name) {
  check(list.is_array(), "\"{}\" is not a list", name);
  for (std::size_t i = 0; i < list.size(); ++i) check(list[i].is_object(), "\"{}\": element {} is not an object", name, i);
}

}  // namespace

ChatTemplate::ChatTemplate(const fs::path& folder, const fs::path& file) {
  const fs::path config_file = folder / config_name;
  const nlohmann::json config = read_object(config_file);
  for (const nlohmann::json& tokens : {config, read_object(folder / tokens_name)}) {
    for (const char* name : {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"}) {
      if (!tokens.contains(name) || tokens[name].is_null() || special_.contains(name)) continue;
      const nlohmann::json& token = tokens[name].is_object() && tokens[name].contains("content") ? tokens[name]["content"] : tokens[name];
      check(token.is_string(), "{}: \"{}\" is neither a text nor an object with \"content\"", folder.string(), name);
      special_[name] = token.get<std::string>();
    }
  }

  const fs::path own = file.empty() ? folder / template_name : file;
  if (!file.empty() || fs::exists(own)) {
    add(read_file(own, most_bytes), own, false);
  } else if (config.contains("chat_template") && config["chat_template"].is_array()) {
    for (const nlohmann::json& t : config["chat_template"]) {
      check(t.is_object() && t.contains("name") && t.contains("template") && t["name"].is_string() && t["template"].is_string(),
            "{}: \"chat_template\" is a list, but not of objects with \"name\" and \"template\"", config_file.string());
      const std::string name = t["name"];
      if (name == "default" || name == "tool_use") add(t["template"].get_ref<const std::string&>(), config_file, name == "tool_use");
    }
    check(main_.has_value(), "{}: none of the chat templates is named \"default\"", config_file.string());
  } else {
    check(config.contains("chat_template") && config["chat_template"].is_string(), "{}: has no chat template, neither {} nor \"chat_template\" in {}: give --chat-template FILE",
          folder.string(), template_name, config_name);
    add(config["chat_template"].get_ref<const std::string&>(), config_file, false);
  }
}

void ChatTemplate::add(std::string_view text, const fs::path& file, bool for_tools) {
  (for_tools ? with_tools_ : main_).emplace(text, file);
  tells_date_ = tells_date_ || text.find("strftime_now") != text.npos;
}

std::string ChatTemplate::render(Json messages, const Json& tools, const Json& more, const std::tm& now) const {
  check_objects(messages, "messages");
  check(!messages.empty(), "\"messages\" is empty");
  for (Json& message : messages) message = normalized(message);
  if (!tools.is_null()) check_objects(tools, "tools");
  check(more.is_null() || more.is_object(), "\"chat_template_kwargs\" is not an object");

  Json variables = special_;
  variables["documents"] = nullptr;
  for (const auto& [key, value] : more.items()) variables[key] = value;
  for (const char* name : {"messages", "tools", "add_generation_prompt"}) check(!more.contains(name), "\"chat_template_kwargs\" cannot say \"{}\"", name);
  variables["messages"] = std::move(messages);
  variables["tools"] = tools;
  variables["add_generation_prompt"] = true;
  return (with_tools_ && !tools.is_null() ? *with_tools_ : *main_).render(variables, now);
}

std::vector<fs::path> chat_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const char* name : {template_name, config_name, tokens_name}) {
    if (fs::exists(folder / name)) files.push_back(folder / name);
  }
  return files;
}

}  // namespace kvmesh
