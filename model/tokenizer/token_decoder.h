// How the tokens of a tokenizer.json that are text (not bytes) become a text again.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

class TokenDecoder {
 public:
  struct Step {
    enum Kind {
      replace,        ///< in each token `from` becomes `to`
      byte_fallback,  ///< tokens <0x00> to <0xFF> in a row are bytes: their text if they are UTF-8, else U+FFFD for each
      fuse,           ///< all tokens become one
      strip,          ///< each token loses `from`, a character, at most `count` times in front
      metaspace,      ///< in each token `from` becomes a space; in the first one it is dropped, if `drop_first`
    } kind;
    std::string from = {}, to = {};
    std::size_t count = 0;
    bool drop_first = false;
  };

  std::vector<Step> steps;

  std::string decode(std::vector<std::string> tokens) const;
  /// The bytes of one token within a text: steps that need the whole text are left out.
  std::string bytes(std::string_view token) const;
};

}  // namespace kvmesh
