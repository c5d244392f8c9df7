// The ranks as a grid with named axes, e.g. "x=2,y=2".
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

/// Rank r's coordinates are row-major: the last axis changes fastest.
class Mesh {
 public:
  struct Axis {
    std::string name;
    int size = 1;
    bool operator==(const Axis&) const = default;
  };

  /// `text` as --mesh has it, axes in order; empty: one axis "x" of all ranks. An Error unless the sizes multiply to `ranks`.
  static Mesh parse(std::string_view text, int ranks);

  const std::vector<Axis>& axes() const { return axes_; }
  bool has(std::string_view axis) const;
  int size(std::string_view axis) const;                   ///< an Error if there is no such axis
  int coordinate(std::string_view axis, int rank) const;   ///< of `rank` along `axis`, 0 … size - 1
  int ranks() const;                                       ///< product of the sizes

 private:
  std::vector<Axis> axes_;
};

/// "x=2,y=2"
std::string to_string(const Mesh& mesh);

}  // namespace kvmesh
