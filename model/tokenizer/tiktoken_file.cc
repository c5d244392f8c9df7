// Reads tiktoken's text format and trusts nothing in it.
#include "model/tokenizer/tiktoken_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <system_error>
#include <unordered_map>

#include "model/json_file.h"
#include "runtime/check.h"

namespace kvmesh {
namespace {

constexpr std::size_t max_bytes = std::size_t{64} << 20;
constexpr std::size_t max_token = 1 << 10;  // bytes; the longest in use have 128, and each place to cut a token is looked at

/// Appends what `text` encodes. False if it is not base64 (RFC 4648, padded, no stray bits) of at least one byte.
bool decode_base64(std::string_view text, std::vector<char>& bytes) {
  static constexpr auto values = [] {
    std::array<std::int8_t, 256> table{};
    table.fill(-1);
    std::int8_t value = 0;
    for (const unsigned char c : std::string_view("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")) table[c] = value++;
    return table;
  }();
  if (text.empty() || text.size() % 4 != 0) return false;
  const std::size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  text.remove_suffix(padding);
  std::uint32_t bits = 0;
  int count = 0;  // bits that are not yet written
  for (const char c : text) {
    const std::int8_t value = values[static_cast<unsigned char>(c)];
    if (value < 0) return false;
    bits = bits << 6 | static_cast<std::uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<char>(bits >> count));
    }
  }
  return (bits & ((1u << count) - 1)) == 0;
}

/// The start of `text` for an error message, with anything unprintable as a question mark.
std::string excerpt(std::string_view text) {
  std::string shown(text.substr(0, 40));
  for (char& c : shown) c = c < ' ' || c > '~' ? '?' : c;
  return text.size() > 40 ? shown + "…" : shown;
}

}  // namespace

TiktokenFile read_tiktoken_file(const std::filesystem::path& file) {
  struct Token {
    std::size_t begin = 0, size = 0;  // in `bytes`; size 0: none
    std::size_t line = 0;
  };
  const std::string text = read_file(file, max_bytes);
  TiktokenFile result{{}, 0, {}};
  result.bytes.reserve(text.size());  // never moves: base64 is longer than what it encodes
  std::vector<Token> by_rank;
  std::unordered_map<std::string_view, std::size_t> line_of;  // the lines of the tokens so far

  std::string_view rest = text;
  for (std::size_t line = 1; !rest.empty(); ++line) {
    std::string_view content = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(content.size() + 1, rest.size()));
    if (content.ends_with('\r')) content.remove_suffix(1);
    if (content.empty()) continue;
    const auto require = [&](bool ok, std::string_view what) { check(ok, "{}:{}: {}: \"{}\"", file.string(), line, what, excerpt(content)); };

    const std::size_t space = content.find(' ');
    require(space != std::string_view::npos, "no space between token and rank");
    Token token{result.bytes.size(), 0, line};
    require(decode_base64(content.substr(0, space), result.bytes), "the token is not base64");
    token.size = result.bytes.size() - token.begin;
    require(token.size <= max_token, fmt::format("the token is longer than {} bytes", max_token));

    const std::string_view digits = content.substr(space + 1);
    std::int32_t rank = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), rank);
    require(error != std::errc::invalid_argument && end == digits.data() + digits.size(), "the rank is not a number");
    require(error == std::errc() && rank >= 0 && rank < rank_limit, fmt::format("the rank is not within 0 to {}", rank_limit - 1));

    if (by_rank.size() <= static_cast<std::size_t>(rank)) by_rank.resize(static_cast<std::size_t>(rank) + 1);
    Token& place = by_rank[static_cast<std::size_t>(rank)];
    require(place.size == 0, fmt::format("rank {} is also that of line {}", rank, place.line));
    place = token;
    const auto [same, is_new] = line_of.emplace(std::string_view(result.bytes.data() + token.begin, token.size), line);
    require(is_new, fmt::format("the token is also that of line {}", same->second));
    ++result.count;
  }

  check(result.count > 0, "{}: there are no tokens in it", file.string());
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    check(line_of.contains(std::string_view(&c, 1)), "{}: no line is the single byte 0x{:02x}; text that has it could not be encoded",
          file.string(), byte);
  }
  for (const Token& token : by_rank) result.tokens.emplace_back(result.bytes.data() + token.begin, token.size);
  return result;
}

}  // namespace kvmesh
