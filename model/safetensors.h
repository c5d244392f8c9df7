// Safetensors files: a JSON header with names, dtypes, shapes and offsets, then the data, mapped rather than read.
// Format: github.com/huggingface/safetensors, whose Rust library decides what a valid file is.
#pragma once

#include "runtime/tensor.h"

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvmesh {

/// One tensor of a file.
struct TensorInfo {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::size_t offset = 0;  ///< of its first byte in the file; any alignment
  std::size_t bytes = 0;
};

/// A file, mapped. The constructor checks everything that the header says against the file's size: known dtypes, sizes that do
/// not overflow, offsets that cover the data once, without overlap or gap. An Error names file and tensor.
/// The file must not be truncated while it is mapped.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& file);

  const std::filesystem::path& path() const { return path_; }
  std::span<const TensorInfo> tensors() const { return tensors_; }  ///< in the order of their data
  const TensorInfo* find(std::string_view name) const;              ///< null: no such tensor

  /// Elements [first, first + count) of a tensor (f32, bf16 or f16), row-major, as `dtype` (f32 or bf16, rounded to nearest even)
  /// into `out`, which may have any alignment. An Error names the tensor if one of them is not finite in `dtype`.
  void read(const TensorInfo& tensor, std::int64_t first, std::int64_t count, DType dtype, void* out) const;
  /// The tensor's data where they are mapped: `bytes` of them, of any alignment; the pages are mapped at once rather than one by one.
  const std::byte* data(const TensorInfo& tensor) const;
  /// An Error that names the tensor unless elements [first, first + count), f32 or bf16, are finite in `dtype`.
  void check_finite(const TensorInfo& tensor, std::int64_t first, std::int64_t count, DType dtype) const;
  /// Gives the tensor's mapped pages back to the system; reading them again maps them again.
  void release(const TensorInfo& tensor) const;

 private:
  void read_header(std::string_view header, std::size_t data_begin);
  void fail_unless(bool finite, const TensorInfo& tensor, DType dtype) const;

  std::filesystem::path path_;
  std::shared_ptr<const std::byte> data_;  // the whole file
  std::size_t size_ = 0;
  std::vector<TensorInfo> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
};

/// The weights of a checkpoint folder: model.safetensors, or if there is none the shards of model.safetensors.index.json
/// (Hugging Face's rule: the single file wins). Shard names are plain file names; every tensor is in the shard that the index
/// names, and the shards hold no other.
class SafetensorsFolder {
 public:
  explicit SafetensorsFolder(const std::filesystem::path& folder);

  struct Entry {
    const SafetensorsFile* file;
    const TensorInfo* tensor;
  };
  const std::map<std::string, Entry, std::less<>>& tensors() const { return tensors_; }
  /// What holds the weights, for error messages: the single file or the index.
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::vector<std::unique_ptr<const SafetensorsFile>> files_;
  std::map<std::string, Entry, std::less<>> tensors_;
};

/// Files that together are a folder's weights: {model.safetensors}, or the index and then its shards, sorted.
std::vector<std::filesystem::path> weight_files(const std::filesystem::path& folder);

struct NamedTensor {
  std::string name;
  Tensor tensor;  // host memory
};

/// Writes the tensors in the given order, the data 64-byte aligned. The file appears complete or not at all: a temporary file
/// beside it, flushed to disk, then renamed. An Error (Fault::io) names the file.
void write_safetensors(const std::filesystem::path& file, std::span<const NamedTensor> tensors);

/// Writes model.safetensors into the folder, or if that would hold over `max_shard_bytes` of data, shards named
/// model-00001-of-0000N.safetensors (a tensor is never split) and then the index. The folder must hold no weights yet.
void write_safetensors_folder(const std::filesystem::path& folder, std::span<const NamedTensor> tensors, std::size_t max_shard_bytes);

/// Writes `text` like write_safetensors does: complete, on disk, or not at all.
void write_file(const std::filesystem::path& file, std::string_view text);

}  // namespace kvmesh
