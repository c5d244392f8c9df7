// --chat: conversations become prompts by the checkpoint's chat template.
#pragma once

#include "launch/options.h"
#include "model/chat/chat_template.h"

#include <nlohmann/json.hpp>

namespace kvmesh {

class Chat {
 public:
  /// `today` is a day as --chat-date has it, for where that is not given.
  Chat(const ChatOptions& options, const std::filesystem::path& checkpoint, const std::string& today);

  /// ChatTemplate::render, after --system's message where `messages` have none of their own.
  std::string render(nlohmann::ordered_json messages, const nlohmann::ordered_json& tools, const nlohmann::ordered_json& more) const;

  /// YYYY-MM-DD if the template tells the date, else empty.
  std::string day() const;

 private:
  ChatTemplate template_;
  std::optional<std::string> system_;
  std::tm now_;  // midnight: a prompt must be the same whenever its row's turn comes
};

}  // namespace kvmesh
