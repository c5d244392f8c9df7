// Safetensors, writing: one file or shards with an index.
#include "model/json_file.h"
#include "model/new_file.h"
#include "model/safetensors.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <unordered_set>

namespace kvmesh {
namespace {

using nlohmann::json;

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "F32";
    case DType::bf16: return "BF16";
    case DType::f16: return "F16";
    case DType::f64: return "F64";
    case DType::i32: return "I32";
    case DType::i64: return "I64";
    case DType::u64: return "U64";
    default: return "U8";
  }
}

std::string header_text(const std::filesystem::path& file, std::span<const NamedTensor> tensors) {
  json header = {{"__metadata__", {{"format", "kvmesh"}}}};
  std::size_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    check(name != "__metadata__" && !header.contains(name), "{}: two tensors are to be named {}", file.string(), shown(name));
    json shape = json::array();
    for (int i = 0; i < tensor.shape().rank(); ++i) shape.push_back(tensor.size(i));
    header[name] = {{"dtype", dtype_name(tensor.dtype())}, {"shape", shape}, {"data_offsets", {offset, offset + tensor.bytes()}}};
    offset += tensor.bytes();
  }
  try {
    return header.dump();
  } catch (const json::exception&) {
    fail(Fault::usage, "{}: the name of a tensor to be written is not UTF-8", file.string());
  }
}

}  // namespace

void write_file(const std::filesystem::path& file, std::string_view text) {
  NewFile out(file);
  out.write(text.data(), text.size());
  out.commit();
}

void write_safetensors(const std::filesystem::path& file, std::span<const NamedTensor> tensors) {
  std::string header = header_text(file, tensors);
  header.append(63 - (8 + header.size() + 63) % 64, ' ');  // the data begin at a multiple of 64
  const std::uint64_t header_bytes = header.size();
  NewFile out(file);
  out.write(&header_bytes, sizeof header_bytes);
  out.write(header.data(), header.size());
  for (const auto& [name, tensor] : tensors) out.write(tensor.raw(), tensor.bytes());
  out.commit();
}

void write_safetensors_folder(const std::filesystem::path& folder, std::span<const NamedTensor> tensors, std::size_t max_shard_bytes) {
  const std::filesystem::path single = folder / "model.safetensors", index = folder / "model.safetensors.index.json";
  for (const auto& file : {single, index}) check(!std::filesystem::exists(file), "{}: is there already", file.string());

  std::vector<std::span<const NamedTensor>> shards;
  std::size_t begin = 0, bytes = 0, total = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::size_t n = tensors[i].tensor.bytes();
    total += n;
    if (i > begin && bytes + n > max_shard_bytes) {
      shards.push_back(tensors.subspan(begin, i - begin));
      begin = i;
      bytes = 0;
    }
    bytes += n;
  }
  shards.push_back(tensors.subspan(begin));
  if (shards.size() == 1) return write_safetensors(single, tensors);

  json map = json::object();
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_safetensors(folder / name, shards[i]);
    for (const NamedTensor& tensor : shards[i])
      check(map.emplace(tensor.name, name).second, "{}: two tensors are to be named {}", folder.string(), shown(tensor.name));
  }
  write_file(index, json{{"metadata", {{"total_size", total}}}, {"weight_map", map}}.dump(2) + "\n");
}

}  // namespace kvmesh
