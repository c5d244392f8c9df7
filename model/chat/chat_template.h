// A checkpoint's chat template: where Hugging Face's tools look for it, and what they give it to see.
#pragma once

#include "model/chat/template.h"

#include <optional>

namespace kvmesh {

class ChatTemplate {
 public:
  /// The template of `file`, if it is not empty, else the folder's: chat_template.jinja, or chat_template in tokenizer_config.json (of several the one named
  /// "default", and "tool_use" where there are tools). Special tokens are variables, from tokenizer_config.json and special_tokens_map.json.
  /// An Error names the folder that has none, or file and line.
  ChatTemplate(const std::filesystem::path& folder, const std::filesystem::path& file);

  /// The conversation as text, with the beginning of an answer. `messages`: a list of objects; `tools`: null, or a list of objects; `more`: null, or an
  /// object of further variables. As in transformers, a message's null values are left out, and reasoning has all its names. An Error says what is wrong.
  std::string render(nlohmann::ordered_json messages, const nlohmann::ordered_json& tools, const nlohmann::ordered_json& more, const std::tm& now) const;

  /// Whether what it prints may depend on the date.
  bool tells_date() const { return tells_date_; }

 private:
  void add(std::string_view text, const std::filesystem::path& file, bool for_tools);

  std::optional<Template> main_, with_tools_;
  nlohmann::ordered_json special_ = nlohmann::ordered_json::object();  // name -> text
  bool tells_date_ = false;
};

/// The files of `folder` that a ChatTemplate reads, as far as they are there.
std::vector<std::filesystem::path> chat_files(const std::filesystem::path& folder);

}  // namespace kvmesh
