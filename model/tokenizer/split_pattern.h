// The regular expressions that cut text into the pieces that byte-pair encoding must not cross: GPT-2's and GPT-4's families.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

#include "model/tokenizer/unicode_classes.h"

namespace kvmesh {

/// GPT-2's pattern, as tiktoken and the tokenizers package write it:
///   '(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s
///   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
/// GPT-4's, with 1 to 3 numbers a piece, for Llama 3; Qwen has one a piece, nanochat two:
///   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
/// Each matches at every place in every text, so pieces leave nothing out. They are scanned by hand, with UnicodeClasses.
class SplitPattern {
 public:
  /// GPT-2's.
  SplitPattern() = default;
  /// The regular expression as a tokenizer.json has it; nothing if it is none of these.
  static std::optional<SplitPattern> of(std::string_view regex);

  /// Bytes of the first piece of `text`, which is well-formed UTF-8 and not empty; its end is the end that $ matches.
  std::size_t piece_length(std::string_view text) const;

 private:
  explicit SplitPattern(int numbers) : numbers_(numbers) {}

  std::size_t gpt2_word_length(std::string_view text) const;
  std::size_t gpt4_word_length(std::string_view text) const;
  /// The end of the run of `run` that begins at `at`, at most `most` characters on.
  std::size_t run_end(std::string_view text, std::size_t at, UnicodeClasses::Class run, int most) const;

  int numbers_ = 0;  ///< GPT-4's pattern with so many numbers a piece at most; 0: GPT-2's
  const UnicodeClasses* classes_ = &UnicodeClasses::get();
};

}  // namespace kvmesh
