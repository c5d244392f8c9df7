// A typed, contiguous, row-major array: a pointer, a shape, and a share in the memory behind it.
#pragma once

#include "runtime/check.h"
#include "runtime/dtype.h"

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>

namespace kvmesh {

/// Up to four sizes, outermost first.
class Shape {
 public:
  static constexpr int max_rank = 4;
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> sizes);
  int rank() const { return rank_; }
  std::int64_t operator[](int i) const { return sizes_[i]; }
  std::int64_t numel() const;
  bool operator==(const Shape&) const = default;

 private:
  std::int64_t sizes_[max_rank] = {};
  int rank_ = 0;
};

/// "[2, 3, 4]"
std::string to_string(const Shape& shape);

/// Copies share memory; the memory lives as long as its last tensor. Nothing here touches the elements, so a tensor may lie
/// on any device; data<T>() is only to be read where the memory is (host code: tensors of the CPU device).
class Tensor {
 public:
  Tensor() = default;
  /// `storage` keeps `data` alive and may be null for memory that outlives the tensor.
  Tensor(std::shared_ptr<void> storage, void* data, DType dtype, Shape shape)
      : storage_(std::move(storage)), data_(data), dtype_(dtype), shape_(shape) {}

  DType dtype() const { return dtype_; }
  const Shape& shape() const { return shape_; }
  std::int64_t size(int dim) const { return shape_[dim]; }
  std::int64_t numel() const { return shape_.numel(); }
  std::size_t bytes() const { return static_cast<std::size_t>(numel()) * size_of(dtype_); }
  bool defined() const { return data_ != nullptr; }
  void* raw() const { return data_; }

  /// The elements; an Error if T is not the tensor's dtype.
  template <typename T>
  T* data() const {
    if (DTypeOf<T>::value != dtype_) fail(Fault::usage, "tensor{} is {}, asked for {}", to_string(shape_), name_of(dtype_), name_of(DTypeOf<T>::value));
    return static_cast<T*>(data_);
  }
  template <typename T>
  std::span<T> span() const {
    return {data<T>(), static_cast<std::size_t>(numel())};
  }

  /// The same elements under another shape of equal size.
  Tensor view(Shape shape) const;
  /// Rows [begin, end) of the outermost dimension; shares memory.
  Tensor slice(std::int64_t begin, std::int64_t end) const;

 private:
  std::shared_ptr<void> storage_;
  void* data_ = nullptr;
  DType dtype_ = DType::u8;
  Shape shape_;
};

/// Host memory, 64-byte aligned, uninitialized. Large tensors are mapped lazily: pages that are never touched cost nothing.
Tensor host_tensor(DType dtype, Shape shape);

}  // namespace kvmesh
