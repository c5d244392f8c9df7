// The decoding steps, each from a list of texts to a list of texts.
#include "model/tokenizer/token_decoder.h"

#include <algorithm>
#include <optional>

#include <fmt/ranges.h>

#include "model/tokenizer/normalizer.h"
#include "model/utf8.h"

namespace kvmesh {
namespace {

/// The byte that a token like <0x0A> stands for.
std::optional<char> byte_of(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
    if (digit < 0) return std::nullopt;
    value = value * 16 + digit;
  }
  return static_cast<char>(value);
}

std::vector<std::string> with_bytes(const std::vector<std::string>& tokens) {
  std::vector<std::string> out;
  std::string bytes;  // of the tokens before that are bytes
  const auto finish = [&] {
    if (valid_utf8_prefix(bytes) == bytes.size()) out.push_back(bytes);
    else out.insert(out.end(), bytes.size(), std::string(replacement_character));
    bytes.clear();
  };
  for (const std::string& token : tokens) {
    if (const std::optional<char> byte = byte_of(token)) {
      bytes += *byte;
      continue;
    }
    if (!bytes.empty()) finish();
    out.push_back(token);
  }
  if (!bytes.empty()) finish();
  return out;
}

std::string stripped(std::string_view token, const TokenDecoder::Step& step) {
  for (std::size_t i = 0; i < step.count && token.starts_with(step.from); ++i) token.remove_prefix(step.from.size());
  return std::string(token);
}

}  // namespace

std::string TokenDecoder::decode(std::vector<std::string> tokens) const {
  for (const Step& step : steps) {
    switch (step.kind) {
      case Step::replace:
        for (std::string& token : tokens) token = replaced(token, step.from, step.to);
        break;
      case Step::byte_fallback: tokens = with_bytes(tokens); break;
      case Step::fuse: tokens = {fmt::format("{}", fmt::join(tokens, ""))}; break;
      case Step::strip:
        for (std::string& token : tokens) token = stripped(token, step);
        break;
      case Step::metaspace:
        for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = replaced(tokens[i], step.from, i == 0 && step.drop_first ? "" : " ");
        break;
    }
  }
  return fmt::format("{}", fmt::join(tokens, ""));
}

std::string TokenDecoder::bytes(std::string_view token) const {
  std::string out(token);
  bool whole = false;  // whether the steps are those of the whole text
  for (const Step& step : steps) {
    switch (step.kind) {
      case Step::replace: out = replaced(out, step.from, step.to); break;
      case Step::byte_fallback:
        if (const std::optional<char> byte = byte_of(out); byte && !whole) return std::string(1, *byte);
        break;
      case Step::fuse: whole = true; break;
      case Step::strip:
        if (!whole) out = stripped(out, step);
        break;
      case Step::metaspace: out = replaced(out, step.from, " "); break;
    }
  }
  return out;
}

}  // namespace kvmesh
