// How a tokenizer.json cuts a text into the pieces that are encoded one by one.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/tokenizer/split_pattern.h"

namespace kvmesh {

class PreTokenizer {
 public:
  struct Step {
    enum Kind { split, digits, metaspace, prefix_space } kind;
    std::optional<SplitPattern> pattern = {};  ///< split: by it
    bool one_by_one = false;                   ///< digits: each is a piece, else runs of them are
    std::string replacement = {};              ///< metaspace: what stands for a space
    bool prepend = false;                      ///< metaspace: a piece begins with the replacement, put there if it is missing
    bool prepend_first_only = false;           ///< … only the piece that begins the whole text
    bool cut = false;                          ///< metaspace: pieces begin at each replacement
  };

  std::vector<Step> steps;  ///< each cuts the pieces of the one before

  using Sink = std::function<void(std::string_view piece)>;
  /// Gives the pieces of `text`, well-formed UTF-8, to `sink` in their order, none empty. `first`: `text` begins the whole text.
  void operator()(std::string_view text, bool first, const Sink& sink) const;

 private:
  void cut_further(std::size_t step, std::string_view text, bool first, const Sink& sink) const;
};

}  // namespace kvmesh
