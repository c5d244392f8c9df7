// Text as Python's str has it: characters are code points, white space and case are Unicode's. All texts are well-formed UTF-8.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh::jinja {

/// Why a template cannot be read or rendered; whoever knows template and line makes an Error of it.
struct Rejected {
  std::string message;
};

template <typename... Args>
[[noreturn]] void reject(fmt::format_string<Args...> format, Args&&... args) {
  throw Rejected{fmt::format(format, std::forward<Args>(args)...)};
}

bool is_space(char32_t c);
void append_character(std::string& text, char32_t c);

/// Characters, and the byte at which one begins (the text's end for one beyond).
std::int64_t length(std::string_view text);
std::size_t byte_of(std::string_view text, std::int64_t character);

/// Without white space, or the characters of `chars`, at the left and right end.
std::string_view strip(std::string_view text, const std::string_view* chars, bool left, bool right);

/// The words between white space (`separator` null) or separators, cut at most `most` times (-1: always), from the right if so.
std::vector<std::string_view> split(std::string_view text, const std::string_view* separator, std::int64_t most, bool from_right);
std::vector<std::string_view> split_lines(std::string_view text);

/// Where `part` begins in `text` from `from` on, or npos; takes time in proportion to both, whatever they are.
std::size_t find_text(std::string_view text, std::string_view part, std::size_t from = 0);
/// How often it is there, none overlapping; of an empty one as many as there are characters, and one more.
std::int64_t count_text(std::string_view text, std::string_view part);

/// At most `most` times (-1: always).
std::string replace(std::string_view text, std::string_view old, std::string_view now, std::int64_t most);

/// Rejects characters whose case depends on what stands around them, or is more than one character.
std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);
/// Jinja's filter, and Python's method (of ASCII text only).
std::string title_filter(std::string_view text);
std::string title_method(std::string_view text);

/// As a literal in Python's quotes.
std::string literal_of(std::string_view text);

}  // namespace kvmesh::jinja
