// The search for added tokens: a trie, and the white space and words around what it finds.
#include "model/tokenizer/added_tokens.h"

#include "model/tokenizer/unicode_classes.h"
#include "model/utf8.h"

namespace kvmesh {
namespace {

/// Where the last character of `text` begins; `text` is not empty.
std::size_t last_character(std::string_view text) {
  std::size_t at = text.size() - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
  return at;
}

bool is_space(std::string_view text, std::size_t at) {
  return UnicodeClasses::get().class_of(character_at(text, at).code) == UnicodeClasses::space;
}

std::size_t without_space_behind(std::string_view text) {
  while (!text.empty() && is_space(text, last_character(text))) text = text.substr(0, last_character(text));
  return text.size();
}

std::size_t space_before(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size() && is_space(text, at)) at += character_at(text, at).length;
  return at;
}

bool touches_word(std::string_view before, std::string_view behind) {
  const UnicodeClasses& classes = UnicodeClasses::get();
  return (!before.empty() && classes.is_word(character_at(before, last_character(before)).code)) ||
         (!behind.empty() && classes.is_word(character_at(behind, 0).code));
}

}  // namespace

AddedTokenFinder::AddedTokenFinder(std::span<const AddedToken> tokens) : tokens_(tokens.begin(), tokens.end()), token_of_{-1} {
  for (std::size_t i = 0; i < tokens_.size(); ++i) {
    begins_[static_cast<unsigned char>(tokens_[i].text[0])] = true;
    std::uint32_t node = 0;
    for (const char c : tokens_[i].text) {
      const auto [place, is_new] = next_.try_emplace({node, static_cast<unsigned char>(c)}, static_cast<std::uint32_t>(token_of_.size()));
      if (is_new) token_of_.push_back(-1);
      node = place->second;
    }
    token_of_[node] = static_cast<std::int32_t>(i);
  }
}

const AddedToken* AddedTokenFinder::longest_at(std::string_view text, std::size_t at) const {
  std::int32_t longest = -1;
  std::uint32_t node = 0;
  for (; at < text.size(); ++at) {
    const auto next = next_.find({node, static_cast<unsigned char>(text[at])});
    if (next == next_.end()) break;
    node = next->second;
    if (token_of_[node] >= 0) longest = token_of_[node];
  }
  return longest < 0 ? nullptr : &tokens_[static_cast<std::size_t>(longest)];
}

std::vector<AddedTokenFinder::Part> AddedTokenFinder::parts(std::string_view text) const {
  std::vector<Part> parts;
  std::size_t done = 0;
  for (std::size_t at = 0; at < text.size();) {
    if (!begins_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    const AddedToken* const token = longest_at(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at, end = at + token->text.size();
    at = end;
    if (token->single_word && touches_word(text.substr(0, begin), text.substr(end))) continue;
    if (token->lstrip) begin = without_space_behind(text.substr(0, begin));
    if (token->rstrip) end += space_before(text.substr(end));
    if (done < begin) parts.push_back({done, begin, -1});
    parts.push_back({begin, end, token->id});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), -1});
  return parts;
}

}  // namespace kvmesh
