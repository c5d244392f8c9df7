// Python's methods of str, as far as chat templates use them.
#include "model/chat/python_text.h"

#include "model/utf8.h"

#include <algorithm>
#include <cstring>

namespace kvmesh::jinja {
namespace {

struct Range {
  char32_t first, last;
};
struct CaseRange {
  char32_t first, last;
  int step, difference;
};

#include "model/chat/unicode_tables.inc"

template <typename Entry, std::size_t n>
const Entry* find(const Entry (&table)[n], char32_t c) {
  const Entry* const after = std::upper_bound(table, table + n, c, [](char32_t code, const Entry& e) { return code < e.first; });
  return after != table && c <= after[-1].last ? after - 1 : nullptr;
}

// \x, \u or \U and the digits that belong to it.
std::string hexadecimal(char32_t c) {
  const auto code = static_cast<std::uint32_t>(c);
  return code < 0x100 ? fmt::format("\\x{:02x}", code) : code < 0x10000 ? fmt::format("\\u{:04x}", code) : fmt::format("\\U{:08x}", code);
}

bool is_ascii_alpha(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

template <std::size_t n>
void change_case(std::string& out, std::string_view text, const CaseRange (&table)[n], char first_letter) {
  for (std::size_t at = 0; at < text.size();) {
    const auto [c, bytes] = character_at(text, at);
    if (c < 0x80) {
      const char letter = static_cast<char>(c);
      out.push_back(letter >= first_letter && letter <= first_letter + 25 ? static_cast<char>(letter ^ 0x20) : letter);
    } else {
      if (find(special_case, c)) reject("the case of the character U+{:04X} is not supported", static_cast<std::uint32_t>(c));
      const CaseRange* range = find(table, c);
      const bool changes = range && (c - range->first) % static_cast<char32_t>(range->step) == 0;
      append_character(out, changes ? static_cast<char32_t>(static_cast<std::int64_t>(c) + range->difference) : c);
    }
    at += bytes;
  }
}

}  // namespace

void append_character(std::string& text, char32_t c) {
  const auto byte = [&](char32_t b) { text.push_back(static_cast<char>(b)); };
  if (c < 0x80) return byte(c);
  if (c < 0x800) return byte(0xc0 | c >> 6), byte(0x80 | (c & 0x3f));
  if (c < 0x10000) return byte(0xe0 | c >> 12), byte(0x80 | (c >> 6 & 0x3f)), byte(0x80 | (c & 0x3f));
  byte(0xf0 | c >> 18), byte(0x80 | (c >> 12 & 0x3f)), byte(0x80 | (c >> 6 & 0x3f)), byte(0x80 | (c & 0x3f));
}

bool is_space(char32_t c) {
  return (c >= 0x9 && c <= 0xd) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
         c == 0x202f || c == 0x205f || c == 0x3000;
}

std::int64_t length(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; });
}

std::size_t byte_of(std::string_view text, std::int64_t character) {
  std::size_t at = 0;
  while (character-- > 0 && at < text.size()) at += character_at(text, at).length;
  return at;
}

std::string_view strip(std::string_view text, const std::string_view* chars, bool left, bool right) {
  const auto goes = [&](std::string_view character) { return chars ? chars->find(character) != chars->npos : is_space(character_at(character, 0).code); };
  while (left && !text.empty()) {
    const std::size_t bytes = character_at(text, 0).length;
    if (!goes(text.substr(0, bytes))) break;
    text.remove_prefix(bytes);
  }
  while (right && !text.empty()) {
    std::size_t at = text.size() - 1;
    while ((static_cast<unsigned char>(text[at]) & 0xc0) == 0x80) --at;
    if (!goes(text.substr(at))) break;
    text = text.substr(0, at);
  }
  return text;
}

std::vector<std::string_view> split(std::string_view text, const std::string_view* separator, std::int64_t most, bool from_right) {
  std::vector<std::string_view> parts;
  const auto white = [&](std::size_t at) { return is_space(character_at(text, at).code); };
  if (!separator) {
    std::vector<std::string_view> words;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t begin = at;
      const bool space = white(at);
      while (at < text.size() && white(at) == space) at += character_at(text, at).length;
      if (!space) words.push_back(text.substr(begin, at - begin));
    }
    const auto kept = static_cast<std::size_t>(most);
    if (most < 0 || kept >= words.size()) return words;
    if (from_right) {  // what is left keeps its white space at the text's end
      const std::string_view last = words[words.size() - kept - 1];
      parts.push_back({text.data(), static_cast<std::size_t>(last.data() + last.size() - text.data())});
      parts.insert(parts.end(), words.end() - most, words.end());
    } else {
      parts.assign(words.begin(), words.begin() + most);
      parts.push_back(text.substr(static_cast<std::size_t>(words[kept].data() - text.data())));
    }
    return parts;
  }
  if (separator->empty()) reject("empty separator");
  while (most < 0 || std::ssize(parts) < most) {
    const std::size_t at = from_right ? text.rfind(*separator) : find_text(text, *separator);
    if (at == text.npos) break;
    parts.push_back(from_right ? text.substr(at + separator->size()) : text.substr(0, at));
    text = from_right ? text.substr(0, at) : text.substr(at + separator->size());
  }
  parts.push_back(text);
  if (from_right) std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<std::string_view> split_lines(std::string_view text) {
  std::vector<std::string_view> lines;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const auto [c, bytes] = character_at(text, at);
    const bool ends = (c >= 0xa && c <= 0xd) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
    const std::size_t end = at;
    at += bytes;
    if (!ends) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    lines.push_back(text.substr(begin, end - begin));
    begin = at;
  }
  if (begin < text.size()) lines.push_back(text.substr(begin));
  return lines;
}

std::size_t find_text(std::string_view text, std::string_view part, std::size_t from) {
  if (from > text.size()) return text.npos;
  const void* found = ::memmem(text.data() + from, text.size() - from, part.data(), part.size());  // the two-way algorithm
  return found ? static_cast<std::size_t>(static_cast<const char*>(found) - text.data()) : text.npos;
}

std::int64_t count_text(std::string_view text, std::string_view part) {
  if (part.empty()) return length(text) + 1;
  std::int64_t count = 0;
  for (std::size_t at = find_text(text, part); at != text.npos; at = find_text(text, part, at + part.size())) ++count;
  return count;
}

std::string replace(std::string_view text, std::string_view old, std::string_view now, std::int64_t most) {
  std::string out;
  while (most != 0) {
    const std::size_t at = find_text(text, old);
    if (at == text.npos) break;
    const std::size_t kept = old.empty() && !text.empty() ? character_at(text, 0).length : at;  // nothing is found before each character
    if (old.empty()) out.append(now).append(text.substr(0, text.empty() ? 0 : kept));
    else out.append(text.substr(0, at)).append(now);
    if (most > 0) --most;
    if (old.empty() && text.empty()) return out;
    text.remove_prefix(kept + old.size());
  }
  return out.append(text);
}

std::string upper(std::string_view text) {
  std::string out;
  change_case(out, text, to_upper, 'a');
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  change_case(out, text, to_lower, 'A');
  return out;
}

std::string capitalize(std::string_view text) {
  const std::size_t first = byte_of(text, 1);
  return upper(text.substr(0, first)) + lower(text.substr(first));
}

std::string title_filter(std::string_view text) {
  std::string out;
  bool begins = true;
  for (std::size_t at = 0; at < text.size();) {
    const auto [c, bytes] = character_at(text, at);
    const std::string_view character = text.substr(at, bytes);
    out += begins ? upper(character) : lower(character);
    begins = is_space(c) || std::u32string_view(U"-({[<").find(c) != std::u32string_view::npos;
    at += bytes;
  }
  return out;
}

std::string title_method(std::string_view text) {
  std::string out;
  bool within = false;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) reject("title() of text that is not ASCII is not supported");
    out += within ? lower({&c, 1}) : upper({&c, 1});
    within = is_ascii_alpha(c);
  }
  return out;
}

std::string literal_of(std::string_view text) {
  const char quote = text.find('\'') != text.npos && text.find('"') == text.npos ? '"' : '\'';
  std::string out(1, quote);
  for (std::size_t at = 0; at < text.size();) {
    const auto [c, bytes] = character_at(text, at);
    if (c == static_cast<char32_t>(quote) || c == '\\') out += {'\\', static_cast<char>(c)};
    else if (c == '\n') out += "\\n";
    else if (c == '\r') out += "\\r";
    else if (c == '\t') out += "\\t";
    else if (c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x80 && find(not_printable, c))) out += hexadecimal(c);
    else out += text.substr(at, bytes);
    at += bytes;
  }
  return out.append(1, quote);
}

}  // namespace kvmesh::jinja
