// A safetensors file. An input that begins with { is a header, to which its length and some data are added.
#include "model/safetensors.h"

#include "tests/fuzz/fuzz.h"
#include "tests/model/scratch.h"

#include <algorithm>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace kvmesh;
  static const test::Scratch scratch;
  std::string file(fuzz::text_of(data, size));
  if (file.starts_with('{')) {
    std::string length;
    for (int i = 0; i < 8; ++i) length += static_cast<char>(file.size() >> (8 * i));
    file = length + file + std::string(64, '\x01');
  }
  const auto name = scratch.write("input.safetensors", file);
  fuzz::accepted([&] {
    const SafetensorsFile input(name);
    std::size_t bytes = 0;
    for (const TensorInfo& tensor : input.tensors()) {
      fuzz::require(input.find(tensor.name) == &tensor && tensor.offset + tensor.bytes <= file.size());
      bytes += tensor.bytes;
      for (const DType dtype : {DType::f32, DType::bf16}) {
        fuzz::accepted([&] {
          const std::int64_t count = std::min<std::int64_t>(tensor.shape.numel(), 100);
          std::vector<std::byte> out(static_cast<std::size_t>(count) * size_of(dtype));
          input.read(tensor, tensor.shape.numel() - count, count, dtype, out.data());
        });
      }
      input.release(tensor);
    }
    fuzz::require(bytes <= file.size());
  });
  return 0;
}
