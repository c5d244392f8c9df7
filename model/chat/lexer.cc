// Text, tags and what is in them.
#include "model/chat/lexer.h"

#include "model/chat/python_text.h"
#include "model/utf8.h"

#include <algorithm>
#include <charconv>

namespace kvmesh::jinja {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool begins_name(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// One kind of line end, and none at the end.
std::string normalized(std::string_view source) {
  std::string out;
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out += source[i] == '\r' ? '\n' : source[i];
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  Lexer(std::string_view source, int& line) : source_(normalized(source)), line_(line) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      std::size_t tag = at_;
      do tag = source_.find('{', tag);
      while (tag != source_.npos && (tag + 1 == source_.size() || std::string_view("{%#").find(source_[tag + 1]) == std::string_view::npos) && ++tag);
      if (tag == source_.npos) {
        data(rest());
        break;
      }
      const char kind = source_[tag + 1];
      const char sign = tag + 2 < source_.size() && (source_[tag + 2] == '-' || source_[tag + 2] == '+') ? source_[tag + 2] : ' ';
      data(before_tag(rest().substr(0, tag - at_), sign, kind != '{'));
      move_to(tag + (sign == ' ' ? 2 : 3));
      if (kind == '#') comment();
      else if (kind == '{') inside(TokenKind::print_begin, TokenKind::print_end);
      else if (!raw()) inside(TokenKind::block_begin, TokenKind::block_end);
    }
    add(TokenKind::end, "");
    return std::move(tokens_);
  }

 private:
  std::string_view rest() const { return std::string_view(source_).substr(at_); }

  void move_to(std::size_t at) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_), source_.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
    at_ = at;
  }
  void skip_space() { move_to(source_.size() - strip(rest(), nullptr, true, false).size()); }
  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }
  void data(std::string_view text) {
    if (!text.empty()) add(TokenKind::data, std::string(text));
  }

  // The text before a tag, without the white space that the tag's sign or lstrip_blocks takes.
  std::string_view before_tag(std::string_view text, char sign, bool lstrip) const {
    if (sign == '-') return strip(text, nullptr, false, true);
    if (sign == '+' || !lstrip) return text;
    const std::size_t line = text.rfind('\n') + 1;  // 0 if there is none
    return (line > 0 || line_begins_) && strip(text.substr(line), nullptr, true, false).empty() ? text.substr(0, line) : text;
  }

  // Behind the two characters that end a tag: takes what its sign or trim_blocks says.
  void end_tag(std::size_t end, char sign, bool trim) {
    move_to(end);
    if (sign == '-') skip_space();
    else if (trim && sign != '+' && at_ < source_.size() && source_[at_] == '\n') move_to(at_ + 1);
    line_begins_ = source_[at_ - 1] == '\n';
  }

  void comment() {
    const std::size_t end = source_.find("#}", at_);
    if (end == source_.npos) reject("Missing end of comment tag");
    end_tag(end + 2, end > at_ ? source_[end - 1] : ' ', true);
  }

  // Whether a tag is raw: then what is between it and endraw has become data.
  bool raw() {
    const std::size_t begin = skip_word(at_, "raw");
    const bool dash = begin != source_.npos && source_[begin] == '-';
    if (begin == source_.npos || source_.compare(begin + dash, 2, "%}") != 0) return false;
    end_tag(begin + dash + 2, dash ? '-' : ' ', false);
    for (std::size_t tag = source_.find("{%", at_); tag != source_.npos; tag = source_.find("{%", tag + 1)) {
      const bool sign = tag + 2 < source_.size() && (source_[tag + 2] == '-' || source_[tag + 2] == '+');
      std::size_t end = skip_word(tag + 2 + sign, "endraw");
      if (end == source_.npos) continue;
      const bool end_sign = source_[end] == '-' || source_[end] == '+';
      if (source_.compare(end + end_sign, 2, "%}") != 0) continue;
      data(before_tag(rest().substr(0, tag - at_), sign ? source_[tag + 2] : ' ', true));
      end_tag(end + end_sign + 2, source_[end], true);
      return true;
    }
    reject("Missing end of raw directive");
  }

  // Behind `word` with white space around it, if something else comes there.
  std::size_t skip_word(std::size_t at, std::string_view word) const {
    const auto skip = [&](std::size_t from) { return source_.size() - strip(std::string_view(source_).substr(from), nullptr, true, false).size(); };
    at = skip(at);
    if (source_.compare(at, word.size(), word) != 0) return source_.npos;
    at = skip(at + word.size());
    return at < source_.size() ? at : source_.npos;
  }

  void inside(TokenKind begin, TokenKind end) {
    const bool block = begin == TokenKind::block_begin;
    const std::string_view closing = block ? "%}" : "}}";
    std::string open;  // the brackets that will close
    add(begin, "");
    for (;;) {
      skip_space();
      if (at_ == source_.size()) reject("the template ends within a tag");
      const char c = source_[at_];
      if (open.empty()) {
        const bool sign = c == '-' || (block && c == '+');
        if (rest().substr(sign).starts_with(closing)) {
          add(end, "");
          return end_tag(at_ + sign + 2, c, block);
        }
      }
      if (is_digit(c)) number();
      else if (begins_name(c)) name();
      else if (c == '\'' || c == '"') text(c);
      else op(open);
    }
  }

  std::size_t while_in(std::size_t at, std::string_view characters) const { return std::min(source_.find_first_not_of(characters, at), source_.size()); }

  void name() {
    const std::size_t end = while_in(at_, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_");
    add(TokenKind::name, source_.substr(at_, end - at_));
    move_to(end);
  }

  // Decimal only: templates count and slice.
  void number() {
    std::size_t end = while_in(at_, "0123456789");
    const bool whole = end + 1 >= source_.size() || source_[end] != '.' || !is_digit(source_[end + 1]) || (at_ > 0 && source_[at_ - 1] == '.');
    if (!whole) end = while_in(end + 1, "0123456789");
    if (end < source_.size() && (begins_name(source_[end]))) reject("this form of a number is not supported: {}", source_.substr(at_, end + 1 - at_));
    if (whole && source_[at_] == '0' && while_in(at_, "0") != end) reject("a number begins with 0");
    add(whole ? TokenKind::integer : TokenKind::real, "");
    const char *const from = source_.data() + at_, *const to = source_.data() + end;
    const auto result = whole ? std::from_chars(from, to, tokens_.back().integer) : std::from_chars(from, to, tokens_.back().real);
    if (result.ec != std::errc()) reject("the number {} is too large", source_.substr(at_, end - at_));
    move_to(end);
  }

  void text(char quote) {
    std::string out;
    std::size_t at = at_ + 1;
    for (; at < source_.size() && source_[at] != quote; ++at) {
      if (source_[at] != '\\') {
        out += source_[at];
      } else if (++at < source_.size()) {
        at = escape(at, out);
      }
    }
    if (at >= source_.size()) reject("a text in quotes does not end");
    add(TokenKind::text, std::move(out));
    move_to(at + 1);
  }

  // Adds what the escape sequence whose letter is at `at` stands for; gives back where it ends.
  std::size_t escape(std::size_t at, std::string& out) const {
    const char c = source_[at];
    constexpr std::string_view letters = "\\'\"abfnrtv", meanings = "\\'\"\a\b\f\n\r\t\v";
    if (const std::size_t i = letters.find(c); i != letters.npos) {
      out += meanings[i];
    } else if (c == 'x' || c == 'u' || c == 'U') {
      const std::size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
      std::uint32_t code = 0;
      const char* const from = source_.data() + at + 1;
      const char* const to = source_.data() + std::min(at + 1 + digits, source_.size());
      if (to - from != static_cast<std::ptrdiff_t>(digits) || std::from_chars(from, to, code, 16).ptr != to) reject("truncated \\{} escape", c);
      if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) reject("the escape for U+{:04X} is no character", code);
      append_character(out, code);
      return at + digits;
    } else if (c == '\n') {
    } else if (is_digit(c) || c == 'N' || static_cast<unsigned char>(c) >= 0x80) {
      reject("the escape sequence \\{} is not supported", static_cast<unsigned char>(c) >= 0x80 ? "(not ASCII)" : std::string(1, c));
    } else {
      out += {'\\', c};
    }
    return at;
  }

  void op(std::string& open) {
    static constexpr std::string_view two[] = {"//", "**", "==", "!=", ">=", "<="}, one = "+-/*%~[](){}><=.:|,;";
    const bool double_op = std::find(std::begin(two), std::end(two), rest().substr(0, 2)) != std::end(two);
    if (!double_op && one.find(source_[at_]) == one.npos) reject("unexpected character '{}'", rest().substr(0, character_at(source_, at_).length));
    const std::string text = source_.substr(at_, double_op ? 2 : 1);
    if (text == "(" || text == "[" || text == "{") open += text == "(" ? ')' : text == "[" ? ']' : '}';
    if (text == ")" || text == "]" || text == "}") {
      if (open.empty() || open.back() != text[0]) reject("unexpected '{}'", text);
      open.pop_back();
    }
    add(TokenKind::op, text);
    move_to(at_ + text.size());
  }

  const std::string source_;
  std::size_t at_ = 0;
  int& line_;
  bool line_begins_ = true;  // the last tag ended with its line, or there was none
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokens_of(std::string_view source, int& line) { return Lexer(source, line).run(); }

}  // namespace kvmesh::jinja
