// Shapes, views and host memory.
#include "runtime/tensor.h"

#include <sys/mman.h>

#include <cstdlib>

namespace kvmesh {

Shape::Shape(std::initializer_list<std::int64_t> sizes) {
  check(sizes.size() <= max_rank, "a shape has at most {} dimensions, not {}", max_rank, sizes.size());
  for (const std::int64_t s : sizes) {
    check(s >= 0, "a shape has no negative size, as in dimension {}: {}", rank_, s);
    sizes_[rank_++] = s;
  }
}

std::int64_t Shape::numel() const {
  std::int64_t n = 1;
  for (int i = 0; i < rank_; ++i) n *= sizes_[i];
  return n;
}

std::string to_string(const Shape& shape) {
  std::string s = "[";
  for (int i = 0; i < shape.rank(); ++i) s += (i ? ", " : "") + std::to_string(shape[i]);
  return s + "]";
}

Tensor Tensor::view(Shape shape) const {
  check(shape.numel() == numel(), "cannot view {} as {}", to_string(shape_), to_string(shape));
  return {storage_, data_, dtype_, shape};
}

Tensor Tensor::slice(std::int64_t begin, std::int64_t end) const {
  check(shape_.rank() > 0 && 0 <= begin && begin <= end && end <= shape_[0], "slice [{}, {}) is outside {}", begin, end, to_string(shape_));
  const std::int64_t row = shape_[0] ? numel() / shape_[0] : 0;
  Shape s = shape_;
  switch (shape_.rank()) {
    case 1: s = {end - begin}; break;
    case 2: s = {end - begin, shape_[1]}; break;
    case 3: s = {end - begin, shape_[1], shape_[2]}; break;
    default: s = {end - begin, shape_[1], shape_[2], shape_[3]}; break;
  }
  return {storage_, static_cast<std::byte*>(data_) + static_cast<std::size_t>(begin * row) * size_of(dtype_), dtype_, s};
}

Tensor host_tensor(DType dtype, Shape shape) {
  const std::size_t bytes = static_cast<std::size_t>(shape.numel()) * size_of(dtype);
  const std::size_t rounded = (bytes + 64) / 64 * 64;  // never zero
  constexpr std::size_t map_from = std::size_t{1} << 20;
  if (rounded < map_from) {
    void* p = std::aligned_alloc(64, rounded);
    if (!p) fail(Fault::rank, "out of memory: {} bytes for a tensor {}", rounded, to_string(shape));
    return {std::shared_ptr<void>(p, std::free), p, dtype, shape};
  }
  void* p = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) fail(Fault::rank, "out of memory: {} bytes for a tensor {}", rounded, to_string(shape));
  madvise(p, rounded, MADV_HUGEPAGE);
  return {std::shared_ptr<void>(p, [rounded](void* q) { munmap(q, rounded); }), p, dtype, shape};
}

}  // namespace kvmesh
