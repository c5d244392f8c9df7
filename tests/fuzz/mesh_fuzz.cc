// --mesh for as many ranks as the first byte says: what is accepted covers every rank once and reads back the same.
#include "comm/mesh.h"

#include "tests/fuzz/fuzz.h"

#include <set>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  if (size == 0) return 0;
  const int ranks = data[0] % 16 + 1;
  fuzz::accepted([&] {
    const Mesh mesh = Mesh::parse(fuzz::text_of(data + 1, size - 1), ranks);
    fuzz::require(mesh.ranks() == ranks && Mesh::parse(to_string(mesh), ranks).axes() == mesh.axes());
    std::set<std::vector<int>> places;
    for (int rank = 0; rank < ranks; ++rank) {
      std::vector<int> place;
      for (const auto& axis : mesh.axes()) {
        place.push_back(mesh.coordinate(axis.name, rank));
        fuzz::require(place.back() >= 0 && place.back() < mesh.size(axis.name));
      }
      places.insert(place);
    }
    fuzz::require(std::ssize(places) == ranks);
  });
  return 0;
}
