// Lines of input, the same on every rank: rank 0 reads the file, block by block, and sends each block to the others. A file of any
// length is never in memory as a whole.
#pragma once

#include "comm/communicator.h"

#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

class LineSource {
 public:
  /// Collective. Only rank 0 needs to see `file`; an Error on all ranks if it cannot be opened.
  LineSource(Communicator& ranks, const std::filesystem::path& file);
  /// Lines that every rank has already.
  LineSource(Communicator& ranks, std::vector<std::string> lines);

  /// The next line that is not blank, without its line feed; nothing at the end. Collective; the view lives until the next call.
  std::optional<std::string_view> next();
  /// Whether next() would give nothing. Collective.
  bool at_end();
  /// How much of the file has become lines, 0 to 1; 0 where that is not known: on other ranks than the first, of a pipe.
  double fraction_read() const;

 private:
  bool refill();

  Communicator& ranks_;
  std::filesystem::path name_;
  std::ifstream file_;
  std::int64_t read_ = 0, size_ = 0;  // bytes of the file; size_ 0: not known
  std::string buffer_;         // unread input from position_ on
  std::size_t position_ = 0;
  bool ended_ = false;
  bool peeked_ = false;        // line_ is the next line
  std::string line_;
};

}  // namespace kvmesh
