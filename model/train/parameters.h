// A model's parameters as training holds them: one float32 vector, matrix after matrix, so that gradients and optimizer state are
// vectors of the same layout.
#pragma once

#include "model/checkpoint.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace kvmesh {

enum class Group : std::uint8_t { embed, head, rest };

/// One matrix [rows, cols] of the vector.
struct Matrix {
  std::string name;               ///< of the (first) checkpoint tensor
  std::vector<std::string> names;  ///< the checkpoint's tensors whose columns lie side by side here
  std::vector<std::int64_t> widths;  ///< columns of each
  std::int64_t rows = 0, cols = 0, offset = 0;
  Group group = Group::rest;
  /// Matrices that Muon makes orthogonal one by one: `heads` of them, side by side ([rows, cols / heads] each) or, for wo, one above the other.
  std::int64_t heads = 1;
  bool heads_are_rows = false;
  std::int64_t size() const { return rows * cols; }
};

struct ParamLayout {
  std::vector<Matrix> matrices;  // embed; qkv, wo, fc1, fc2 of each block; lm_head
  std::int64_t size = 0;         // elements; every matrix begins at a multiple of 16

  explicit ParamLayout(const ModelConfig& config);
  /// The matrix's part of a vector, [rows, cols].
  Tensor of(const Matrix& matrix, const Tensor& vector) const;
};

/// How weights begin. original: embed N(0, 1), lm_head N(0, 0.001²), wo and fc2 zero, the others uniform with variance 1 / rows. copying: for small models
/// that are to copy names from their context early: embed N(0, 2²), lm_head 0.01 · embedᵀ, wo = wvᵀ, fc2 zero. Each element depends on `seed`, its tensor's
/// name and its place there alone.
enum class Init : std::uint8_t { original, copying };
void initialize(const ModelConfig& config, const ParamLayout& layout, Init init, std::uint32_t seed, const Tensor& vector);

/// From a folder's tensors, as float32; an Error names file and tensor.
void read_parameters(const std::filesystem::path& folder, const ModelConfig& config, const ParamLayout& layout, const Tensor& vector);
/// The same from one safetensors file, whose tensors' names begin with `prefix`.
void read_vector(const SafetensorsFile& file, const std::string& prefix, const ParamLayout& layout, const Tensor& vector);

/// The checkpoint's tensors, each with `prefix`, as `dtype`: copies.
std::vector<NamedTensor> named_tensors(const ModelConfig& config, const ParamLayout& layout, const Tensor& vector, DType dtype, const std::string& prefix = {});

}  // namespace kvmesh
