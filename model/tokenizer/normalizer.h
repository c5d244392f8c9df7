// What a tokenizer.json does to a text before it is split: NFC, prepending, replacing.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

/// `text`, which is well-formed UTF-8, in Unicode's normalization form C, as the tokenizers package has it: characters that its
/// Unicode version does not know stay as and where they are.
std::string nfc(std::string_view text);

/// Every `from` in `text` becomes `to`; `from` is not empty.
std::string replaced(std::string_view text, std::string_view from, std::string_view to);

class Normalizer {
 public:
  struct Step {
    enum Kind { nfc, prepend, replace } kind;
    std::string from;  ///< replace: what is replaced
    std::string to;    ///< replace: by what; prepend: what stands before the text then
  };

  std::vector<Step> steps;  ///< in their order; none: texts stay as they are

  /// `text` is well-formed UTF-8 and not empty; so is what it becomes.
  std::string operator()(std::string_view text) const;
};

}  // namespace kvmesh
