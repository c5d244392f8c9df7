// A checkpoint folder, loaded into memory that a host's ranks share, saved, and fingerprinted.
#include "model/checkpoint.h"

#include "model/json_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <unordered_set>

namespace kvmesh {
namespace {

constexpr const char* tokenizer_name = "tokenizer.tiktoken";

/// One matrix [k, n] of the arena: the named tensors' columns side by side.
struct Part {
  std::vector<std::string> names;
  std::int64_t k = 0, n = 0;
  bool packed = true;
  std::size_t offset = 0, bytes = 0;
};

struct Layout {
  std::vector<Part> parts;  // embed; qkv, wo, fc1, fc2 of each block; lm_head
  std::size_t bytes = 0;
};

Layout make_layout(const ModelConfig& config, DType dtype, const Device& device) {
  const std::int64_t D = config.d_emb, H = config.q_heads, K = config.kv_heads, h = config.head_dim(), V = config.vocab_size;
  Layout layout;
  const auto add = [&](std::vector<std::string> names, std::int64_t k, std::int64_t n, bool packed = true) {
    const std::size_t bytes = packed ? device.weight_bytes(dtype, k, n) : static_cast<std::size_t>(k * n) * size_of(dtype);
    layout.parts.push_back({std::move(names), k, n, packed, layout.bytes, bytes});
    layout.bytes += (bytes + 63) / 64 * 64;
  };
  add({"embed.weight"}, V, D, false);
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string block = fmt::format("blocks.{}.", i);
    add({block + "attn.wq", block + "attn.wk", block + "attn.wv"}, D, (H + 2 * K) * h);
    add({block + "attn.wo"}, H * h, D);
    add({block + "mlp.fc1.weight"}, D, 4 * D);
    add({block + "mlp.fc2.weight"}, 4 * D, D);
  }
  add({"lm_head.weight"}, D, V);
  return layout;
}

/// The part's rows [k, n] as `dtype` into `out`.
void read_rows(const SafetensorsFolder& files, const Part& part, DType dtype, std::byte* out) {
  const std::size_t row_bytes = static_cast<std::size_t>(part.n) * size_of(dtype);
  std::size_t column = 0;
  for (const std::string& name : part.names) {
    const auto& [file, tensor] = files.tensors().find(name)->second;
    const std::int64_t width = tensor->shape.numel() / part.k;
    if (width == part.n) {
      file->read(*tensor, 0, part.k * part.n, dtype, out);
    } else {
      for (std::int64_t r = 0; r < part.k; ++r)
        file->read(*tensor, r * width, width, dtype, out + static_cast<std::size_t>(r) * row_bytes + column);
    }
    column += static_cast<std::size_t>(width) * size_of(dtype);
    file->release(*tensor);
  }
}

}  // namespace

void check_params(const SafetensorsFolder& files, const ModelConfig& config) {
  std::unordered_set<std::string> expected;
  for (const ParamSpec& spec : param_specs(config)) {
    expected.insert(spec.name);
    const auto found = files.tensors().find(spec.name);
    check(found != files.tensors().end(), "{}: tensor \"{}\" {} is missing", files.path().string(), spec.name, to_string(spec.shape));
    const auto& [file, tensor] = found->second;
    check(tensor->shape == spec.shape, "{}: tensor \"{}\" is {}, but config.json asks for {}", file->path().string(), spec.name,
          to_string(tensor->shape), to_string(spec.shape));
    check(tensor->dtype == DType::f32 || tensor->dtype == DType::bf16 || tensor->dtype == DType::f16,
          "{}: tensor \"{}\" is {}; weights are F32, BF16 or F16", file->path().string(), spec.name, name_of(tensor->dtype));
  }
  for (const auto& [name, entry] : files.tensors())
    check(expected.contains(name), "{}: tensor {} is none of this model's", entry.file->path().string(), shown(name));
}

namespace {

/// Packs what `rows` writes for each part (its rows [k, n] as `dtype`, called on the host's first rank) into memory that the host's ranks share.
GptWeights build_weights(const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group,
                         const std::function<void(const Part&, std::byte*)>& rows) {
  const Layout layout = make_layout(config, dtype, device);
  const auto arena = std::make_shared<Tensor>(device.resident(share_on_host(group, static_cast<std::int64_t>(layout.bytes), [&](void* memory) {
    for (const Part& part : layout.parts) {
      std::byte* target = static_cast<std::byte*>(memory) + part.offset;
      if (!part.packed) {
        rows(part, target);
        continue;
      }
      const Tensor matrix = host_tensor(dtype, {part.k, part.n});
      rows(part, static_cast<std::byte*>(matrix.raw()));
      device.pack_weight(matrix, dtype, target);
    }
  })));

  auto part = layout.parts.begin();
  const auto next_weight = [&] {
    const auto begin = static_cast<std::int64_t>(part->offset), end = begin + static_cast<std::int64_t>(part->bytes);
    const Weight weight{part->k, part->n, dtype, arena->slice(begin, end)};
    ++part;
    return weight;
  };
  GptWeights weights;
  weights.embed = Tensor(arena, static_cast<std::byte*>(arena->raw()) + part->offset, dtype, {part->k, part->n});
  ++part;
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    GptWeights::Block block;
    for (Weight* weight : {&block.qkv, &block.wo, &block.fc1, &block.fc2}) *weight = next_weight();
    weights.blocks.push_back(std::move(block));
  }
  weights.lm_head = next_weight();
  return weights;
}

}  // namespace

GptWeights load_weights(const std::filesystem::path& folder, const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group) {
  check(dtype == DType::f32 || dtype == DType::bf16, "weights are float32 or bfloat16, not {}", name_of(dtype));
  // Checked before the memory is asked for, so that a wrong config is told as such; one byte is shared so that every rank
  // hears of an error.
  std::unique_ptr<const SafetensorsFolder> files;  // on the host's first rank
  share_on_host(group, 1, [&](void*) {
    files = std::make_unique<const SafetensorsFolder>(folder);
    check_params(*files, config);
  });

  return build_weights(config, dtype, device, group, [&](const Part& part, std::byte* rows) { read_rows(*files, part, dtype, rows); });
}

std::size_t weights_bytes(const ModelConfig& config, DType dtype, const Device& device) { return make_layout(config, dtype, device).bytes; }

GptWeights random_weights(const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group, std::uint32_t seed) {
  std::mt19937_64 bits(seed);
  return build_weights(config, dtype, device, group, [&](const Part& part, std::byte* rows) {
    const float width = std::sqrt(12.0f / static_cast<float>(part.packed ? part.k : 1));  // of the interval
    for (std::int64_t i = 0; i < part.k * part.n; ++i) {
      const float x = (static_cast<float>(bits() >> 40) * 0x1p-24f - 0.5f) * width;
      if (dtype == DType::bf16) {
        reinterpret_cast<bfloat16*>(rows)[i] = bfloat16(x);
      } else {
        reinterpret_cast<float*>(rows)[i] = x;
      }
    }
  });
}

std::optional<Tokenizer> load_tokenizer(const std::filesystem::path& folder, const ModelConfig& config) {
  const std::filesystem::path file = folder / tokenizer_name;
  if (!std::filesystem::exists(file)) return std::nullopt;
  Tokenizer tokenizer(file, config.has_special_tokens ? &config.special_tokens : nullptr);
  check(tokenizer.ranks() <= config.vocab_size, "{}: has ids up to {}, but config.json's vocab_size is {}", file.string(), tokenizer.ranks() - 1, config.vocab_size);
  return tokenizer;
}

namespace {

// XXH3's 128 bits over files.
class Hash {
 public:
  Hash() { XXH3_128bits_reset(&state_); }
  void add(std::string_view bytes) { XXH3_128bits_update(&state_, bytes.data(), bytes.size()); }
  void add_file(const std::filesystem::path& file, std::int64_t most = std::numeric_limits<std::int64_t>::max()) {
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    check(fd >= 0, "{}: {}", file.string(), std::strerror(errno));
    std::vector<char> buffer(std::size_t{1} << 20);
    struct stat status = {};
    const off_t skipped = fstat(fd, &status) == 0 ? status.st_size / most * std::ssize(buffer) : 0;  // behind each block
    std::uint64_t bytes = skipped > 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
    ssize_t n;
    while ((n = read(fd, buffer.data(), buffer.size())) > 0) {
      add({buffer.data(), static_cast<std::size_t>(n)});
      if (skipped == 0) bytes += static_cast<std::uint64_t>(n);
      if (skipped > 0) lseek(fd, skipped, SEEK_CUR);
    }
    const int error = errno;
    close(fd);
    check(n == 0, "{}: cannot be read: {}", file.string(), std::strerror(error));
    XXH3_128bits_update(&state_, &bytes, sizeof bytes);
  }
  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(&state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  XXH3_state_t state_;
};

}  // namespace

std::string checkpoint_hash(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files = weight_files(folder);
  files.insert(files.begin(), folder / "config.json");
  if (std::filesystem::exists(folder / tokenizer_name)) files.push_back(folder / tokenizer_name);
  Hash hash;
  for (const std::filesystem::path& file : files) {
    const std::string name = file.filename().string();
    hash.add({name.c_str(), name.size() + 1});
    hash.add_file(file);
  }
  return hash.hex();
}

std::string file_hash(const std::filesystem::path& file, std::int64_t most) {
  Hash hash;
  hash.add_file(file, most);
  return hash.hex();
}

void save_checkpoint(const std::filesystem::path& folder, const ModelConfig& config, std::span<const NamedTensor> tensors,
                     const std::filesystem::path& tokenizer, std::size_t max_shard_bytes) {
  namespace fs = std::filesystem;
  check(!fs::exists(folder), "{}: is there already", folder.string());
  fs::path partial = folder.has_filename() ? folder : folder.parent_path();  // without a slash at the end
  partial += ".partial";
  try {
    fs::remove_all(partial);
    fs::create_directories(partial);
    if (!tokenizer.empty()) write_file(partial / tokenizer_name, read_file(tokenizer, std::size_t{1} << 30));
    write_safetensors_folder(partial, tensors, max_shard_bytes);
    write_file(partial / "config.json", to_json(config));
    check_params(SafetensorsFolder(partial), config);
    fs::rename(partial, folder);
  } catch (const fs::filesystem_error& e) {
    fail(Fault::io, "{}: cannot be written: {}", folder.string(), e.code().message());
  }
}

}  // namespace kvmesh
