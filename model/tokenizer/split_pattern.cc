// The scanner for GPT-2's and GPT-4's patterns.
#include "model/tokenizer/split_pattern.h"

#include <climits>
#include <string>

#include "model/utf8.h"

namespace kvmesh {
namespace {

using enum UnicodeClasses::Class;

/// Bytes of the contraction at the start of `text`, which starts with an apostrophe; 0 if there is none.
std::size_t contraction_length(std::string_view text, bool any_case) {
  const auto letter_at = [&](std::size_t i) {
    const char c = i < text.size() ? text[i] : '\0';
    return any_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  };
  const char first = letter_at(1), second = letter_at(2);
  if (first == 's' || first == 'd' || first == 'm' || first == 't') return 2;
  if (any_case && text.substr(1).starts_with("\u017f")) return 3;  // the long s, whose upper case is S
  if ((first == 'l' && second == 'l') || (first == 'v' && second == 'e') || (first == 'r' && second == 'e')) return 3;
  return 0;
}

/// White space at the start of `text`: all of it at the text's end, else all but its last character, which may belong to what
/// follows. With `lines` the last line end of it is the end, if it has one.
std::size_t space_length(std::string_view text, bool lines, const UnicodeClasses& classes) {
  std::size_t end = 0, last = 0, line_end = 0;
  bool at_end = true;
  while (end < text.size()) {
    const Character next = character_at(text, end);
    at_end = classes.class_of(next.code) == space;
    if (!at_end) break;
    last = end;
    end += next.length;
    if (next.code == '\n' || next.code == '\r') line_end = end;
  }
  if (lines && line_end > 0) return line_end;
  return at_end || last == 0 ? end : last;
}

}  // namespace

std::optional<SplitPattern> SplitPattern::of(std::string_view regex) {
  for (const char* gpt2 : {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
                           R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"}) {
    if (regex == gpt2) return SplitPattern();
  }
  const std::string_view numbers[] = {R"(\p{N})", R"(\p{N}{1,2})", R"(\p{N}{1,3})"};
  for (int count = 1; count <= 3; ++count) {
    // The same but for quantifiers that do not give back what the next part could not take anyway.
    for (const auto& [before, behind] : {std::pair{R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)", R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"},
                                         std::pair{R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|)", R"(| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)"}}) {
      if (regex == before + std::string(numbers[count - 1]) + behind) return SplitPattern(count);
    }
  }
  return std::nullopt;
}

std::size_t SplitPattern::run_end(std::string_view text, std::size_t at, UnicodeClasses::Class run, int most) const {
  while (at < text.size() && most-- > 0) {
    const Character next = character_at(text, at);
    if (classes_->class_of(next.code) != run) break;
    at += next.length;
  }
  return at;
}

std::size_t SplitPattern::piece_length(std::string_view text) const {
  if (text[0] == '\'') {
    if (const std::size_t length = contraction_length(text, numbers_ > 0)) return length;
  }
  if (const std::size_t length = numbers_ > 0 ? gpt4_word_length(text) : gpt2_word_length(text)) return length;
  return space_length(text, numbers_ > 0, *classes_);
}

/// " ?" and a run of one class that is not white space; 0 if there is none.
std::size_t SplitPattern::gpt2_word_length(std::string_view text) const {
  const std::size_t begin = text[0] == ' ' ? 1 : 0;
  if (begin == text.size()) return 0;
  const UnicodeClasses::Class run = classes_->class_of(character_at(text, begin).code);
  return run == space ? 0 : run_end(text, begin, run, INT_MAX);
}

/// Letters behind at most one character that is no number and no line end; or a few numbers; or others behind at most one space and
/// with the line ends that follow; 0 if there is none of them.
std::size_t SplitPattern::gpt4_word_length(std::string_view text) const {
  const Character first = character_at(text, 0);
  const UnicodeClasses::Class run = classes_->class_of(first.code);
  if (run == number) return run_end(text, 0, number, numbers_);
  if (run == letter) return run_end(text, first.length, letter, INT_MAX);
  if (first.code == '\r' || first.code == '\n') return 0;
  if (const std::size_t end = run_end(text, first.length, letter, INT_MAX); end > first.length) return end;
  const std::size_t begin = first.code == ' ' ? 1 : 0;
  std::size_t end = run_end(text, begin, other, INT_MAX);
  if (end == begin) return 0;
  while (end < text.size() && (text[end] == '\r' || text[end] == '\n')) ++end;
  return end;
}

}  // namespace kvmesh
