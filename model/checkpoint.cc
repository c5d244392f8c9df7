// A checkpoint folder: its tensors checked, its tokenizer, fingerprinted, saved.
#include "model/checkpoint.h"

#include "model/chat/chat_template.h"
#include "model/json_file.h"
#include "runtime/cpu/thread_pool.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <unordered_set>

namespace kvmesh {
std::vector<SafetensorsFolder::Entry> find_params(const SafetensorsFolder& files, const ModelConfig& config) {
  std::vector<SafetensorsFolder::Entry> entries;
  std::unordered_set<std::string_view> taken;
  const std::string_view prefix = optional_prefix(config);
  const auto find = [&](const std::string& name, const Shape& shape) {
    auto found = files.tensors().find(name);
    if (found == files.tensors().end() && !prefix.empty() && name.starts_with(prefix)) found = files.tensors().find(std::string_view(name).substr(prefix.size()));
    check(found != files.tensors().end(), "{}: tensor \"{}\" {} is missing", files.path().string(), name, to_string(shape));
    return found;
  };
  const auto same = [](const SafetensorsFolder::Entry& a, const SafetensorsFolder::Entry& b) {
    return a.tensor->dtype == b.tensor->dtype && a.tensor->shape == b.tensor->shape && std::memcmp(a.file->data(*a.tensor), b.file->data(*b.tensor), a.tensor->bytes) == 0;
  };
  for (const ParamSpec& spec : param_specs(config)) {
    const auto found = find(spec.name, spec.shape);
    const auto& [file, tensor] = found->second;
    check(tensor->shape == spec.shape, "{}: tensor \"{}\" is {}, but config.json asks for {}", file->path().string(), tensor->name,
          to_string(tensor->shape), to_string(spec.shape));
    check(tensor->dtype == DType::f32 || tensor->dtype == DType::bf16 || tensor->dtype == DType::f16,
          "{}: tensor \"{}\" is {}; weights are F32, BF16 or F16", file->path().string(), tensor->name, name_of(tensor->dtype));
    taken.insert(found->first);
    entries.push_back(found->second);
  }
  const auto copy = config.tied_embeddings ? files.tensors().find("lm_head.weight") : files.tensors().end();
  if (copy != files.tensors().end()) {
    check(same(copy->second, entries[0]), "{}: tensor \"lm_head.weight\" is not \"{}\", to which config.json ties it: set \"tie_word_embeddings\" to false to use it",
          copy->second.file->path().string(), entries[0].tensor->name);
  }
  for (const auto& [name, original] : param_copies(config)) {
    const auto found = find(name, {config.mlp_width(), config.d_emb});
    check(same(found->second, find(original, {})->second), "{}: tensor \"{}\" is not \"{}\": kvmesh has \"hidden_act\" relu only where the two are one",
          found->second.file->path().string(), name, original);
    taken.insert(found->first);
  }
  for (const auto& [name, entry] : files.tensors())
    check(taken.contains(name) || is_passed_over(config, name), "{}: tensor {} is none of this model's", entry.file->path().string(), shown(name));
  return entries;
}

std::filesystem::path tokenizer_file(const std::filesystem::path& folder) {
  for (const char* name : {"tokenizer.tiktoken", "tokenizer.json"}) {
    if (std::filesystem::exists(folder / name)) return folder / name;
  }
  return {};
}

std::optional<Tokenizer> load_tokenizer(const std::filesystem::path& folder, const ModelConfig& config) {
  const std::filesystem::path file = tokenizer_file(folder);
  if (file.empty()) return std::nullopt;
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

std::vector<std::filesystem::path> checkpoint_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files = weight_files(folder);
  files.insert(files.begin(), folder / "config.json");
  for (const std::filesystem::path& file : {tokenizer_file(folder), folder / "generation_config.json"}) {
    if (!file.empty() && std::filesystem::exists(file)) files.push_back(file);
  }
  for (const std::filesystem::path& file : chat_files(folder)) files.push_back(file);
  return files;
}

// Of each file its name, its size, and the hashes of its blocks, which threads work out in any order.
std::string checkpoint_hash(const std::filesystem::path& folder, int threads) {
  constexpr std::int64_t block = std::int64_t{1} << 20;
  cpu::ThreadPool pool(threads);
  Hash hash;
  for (const std::filesystem::path& file : checkpoint_files(folder)) {
    const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    check(fd >= 0, "{}: {}", file.string(), std::strerror(errno));
    const std::shared_ptr<const void> closed(nullptr, [fd](const void*) { close(fd); });
    struct stat status = {};
    check(fstat(fd, &status) == 0, "{}: {}", file.string(), std::strerror(errno));
    check(S_ISREG(status.st_mode), "{}: not a regular file", file.string());
    std::vector<XXH128_hash_t> hashes(static_cast<std::size_t>((status.st_size + block - 1) / block));
    pool.parallel_for(std::ssize(hashes), 8, [&](std::int64_t begin, std::int64_t end) {
      std::vector<char> buffer(static_cast<std::size_t>(block));
      for (std::int64_t b = begin; b < end; ++b) {
        const std::int64_t bytes = std::min<std::int64_t>(block, status.st_size - b * block);
        std::int64_t done = 0;
        while (done < bytes) {
          const ssize_t n = pread(fd, buffer.data() + done, static_cast<std::size_t>(bytes - done), b * block + done);
          if (n < 0 && errno == EINTR) continue;
          check(n > 0, "{}: cannot be read: {}", file.string(), n < 0 ? std::strerror(errno) : "it was cut short meanwhile");
          done += n;
        }
        hashes[static_cast<std::size_t>(b)] = XXH3_128bits(buffer.data(), static_cast<std::size_t>(bytes));
      }
    });
    const std::string name = file.filename().string();
    hash.add({name.c_str(), name.size() + 1});
    hash.add(fmt::format("{} ", status.st_size));
    hash.add({reinterpret_cast<const char*>(hashes.data()), hashes.size() * sizeof(XXH128_hash_t)});
  }
  return hash.hex();
}

std::string file_hash(const std::filesystem::path& file, std::int64_t most) {
  Hash hash;
  hash.add_file(file, most);
  return hash.hex();
}

void save_checkpoint(const std::filesystem::path& folder, const ModelConfig& config, std::span<const NamedTensor> tensors,
                     const std::filesystem::path& tokenizer, std::size_t max_shard_bytes, const std::function<void(const std::filesystem::path&)>& more) {
  namespace fs = std::filesystem;
  check(!fs::exists(folder), "{}: is there already", folder.string());
  fs::path partial = folder.has_filename() ? folder : folder.parent_path();  // without a slash at the end
  partial += ".partial";
  try {
    fs::remove_all(partial);
    fs::create_directories(partial);
    if (!tokenizer.empty()) write_file(partial / (tokenizer.extension() == ".json" ? "tokenizer.json" : "tokenizer.tiktoken"), read_file(tokenizer, std::size_t{1} << 30));
    write_safetensors_folder(partial, tensors, max_shard_bytes);
    write_file(partial / "config.json", to_json(config));
    find_params(SafetensorsFolder(partial), config);
    if (more) more(partial);
    fs::rename(partial, folder);
  } catch (const fs::filesystem_error& e) {
    fail(Fault::io, "{}: cannot be written: {}", folder.string(), e.code().message());
  }
}

}  // namespace kvmesh
