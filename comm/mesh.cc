// Parsing of --mesh and the coordinates of a rank.
#include "comm/mesh.h"

#include "runtime/check.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdint>

namespace kvmesh {
namespace {

bool is_name(std::string_view s) {
  return !s.empty() && !std::isdigit(static_cast<unsigned char>(s[0])) &&
         std::all_of(s.begin(), s.end(), [](unsigned char c) { return std::isalnum(c) || c == '_'; });
}

Mesh::Axis parse_axis(std::string_view part, std::string_view text) {
  const std::size_t equals = part.find('=');
  const std::string_view name = part.substr(0, equals);
  const std::string_view digits = equals == part.npos ? "" : part.substr(equals + 1);
  int size = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), size);
  check(is_name(name) && error == std::errc() && end == digits.data() + digits.size() && size > 0,
        "--mesh {}: \"{}\" is not an axis and its size, as in x=4", text, part);
  return {std::string(name), size};
}

}  // namespace

Mesh Mesh::parse(std::string_view text, int ranks) {
  Mesh mesh;
  if (text.empty()) mesh.axes_.push_back({"x", ranks});
  std::int64_t product = text.empty() ? ranks : 1;
  for (std::size_t begin = 0; !text.empty() && begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    Axis axis = parse_axis(text.substr(begin, end - begin), text);
    check(!mesh.has(axis.name), "--mesh {}: axis {} is there twice", text, axis.name);
    product = std::min<std::int64_t>(product * axis.size, INT64_MAX >> 32);
    mesh.axes_.push_back(std::move(axis));
    begin = end + 1;
  }
  check(product == ranks, "--mesh {}: its sizes multiply to {}, but the job has {} rank{}", text, product, ranks, ranks == 1 ? "" : "s");
  return mesh;
}

bool Mesh::has(std::string_view axis) const {
  return std::any_of(axes_.begin(), axes_.end(), [&](const Axis& a) { return a.name == axis; });
}

int Mesh::size(std::string_view axis) const {
  for (const Axis& a : axes_) {
    if (a.name == axis) return a.size;
  }
  fail(Fault::usage, "the mesh {} has no axis {}", to_string(*this), axis);
}

int Mesh::coordinate(std::string_view axis, int rank) const {
  check(0 <= rank && rank < ranks(), "rank {} is not on the mesh {}", rank, to_string(*this));
  const int along = size(axis);
  for (auto a = axes_.rbegin(); a->name != axis; ++a) rank /= a->size;
  return rank % along;
}

int Mesh::ranks() const {
  int product = 1;
  for (const Axis& a : axes_) product *= a.size;
  return product;
}

std::string to_string(const Mesh& mesh) {
  std::string s;
  for (const Mesh::Axis& a : mesh.axes()) s += fmt::format("{}{}={}", s.empty() ? "" : ",", a.name, a.size);
  return s;
}

}  // namespace kvmesh
