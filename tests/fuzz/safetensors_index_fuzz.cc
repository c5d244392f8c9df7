// model.safetensors.index.json beside two shards, which hold a and b, and c.
#include "model/safetensors.h"

#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  static const test::Scratch scratch;
  [[maybe_unused]] static const bool written = [] {
    const auto shard = [](std::string_view header, std::size_t bytes) {
      std::string file(1, static_cast<char>(header.size()));
      return file.append(7, '\0').append(header).append(bytes, '\0');
    };
    scratch.write("1.safetensors", shard(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}})", 9));
    scratch.write("2.safetensors", shard(R"({"c":{"dtype":"BF16","shape":[1,1],"data_offsets":[0,2]}})", 2));
    return true;
  }();
  scratch.write("model.safetensors.index.json", fuzz::text_of(data, size));
  fuzz::accepted([&] {
    const SafetensorsFolder folder(scratch.path());
    fuzz::require(folder.tensors().size() <= 3);
    for (const auto& [name, entry] : folder.tensors()) fuzz::require(entry.tensor->name == name && entry.file->find(name) == entry.tensor);
    fuzz::require(weight_files(scratch.path()).size() <= 3);
  });
  return 0;
}
