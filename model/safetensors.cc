// Safetensors, reading: the header's checks, the index of a sharded checkpoint, conversion on the way out.
#include "model/safetensors.h"

#include "model/json_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <system_error>

namespace kvmesh {
namespace {

using nlohmann::json;

constexpr std::size_t max_header_bytes = 100'000'000;  // as the reference library
constexpr const char* single_name = "model.safetensors";
constexpr const char* index_name = "model.safetensors.index.json";

std::optional<DType> dtype_named(std::string_view name) {
  if (name == "F32") return DType::f32;
  if (name == "BF16") return DType::bf16;
  if (name == "F16") return DType::f16;
  if (name == "F64") return DType::f64;
  if (name == "I32") return DType::i32;
  if (name == "I64") return DType::i64;
  if (name == "U64") return DType::u64;
  if (name == "U8") return DType::u8;
  return std::nullopt;
}

Shape shape_of(const std::vector<std::int64_t>& s) {
  switch (s.size()) {
    case 0: return {};
    case 1: return {s[0]};
    case 2: return {s[0], s[1]};
    case 3: return {s[0], s[1], s[2]};
    default: return {s[0], s[1], s[2], s[3]};
  }
}

template <typename T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float from_half(std::uint16_t h) {
  const std::uint32_t sign = std::uint32_t{h} >> 15 << 31, exponent = (h >> 10) & 31u, fraction = h & 1023u;
  const float subnormal = static_cast<float>(static_cast<std::int32_t>(fraction)) * 0x1p-24f;
  const std::uint32_t normal = (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
  return std::bit_cast<float>(sign | (exponent == 0 ? std::bit_cast<std::uint32_t>(subnormal) : normal));
}

float as_float(const std::byte* p, float) { return load<float>(p); }
float as_float(const std::byte* p, bfloat16) { return load<bfloat16>(p); }
float as_float(const std::byte* p, std::uint16_t) { return from_half(load<std::uint16_t>(p)); }

bool not_finite(float x) { return (std::bit_cast<std::uint32_t>(x) & 0x7f800000u) == 0x7f800000u; }
bool not_finite(bfloat16 x) { return (x.bits & 0x7f80u) == 0x7f80u; }

/// Whether all results are finite. From is float, bfloat16, or std::uint16_t for a half.
template <typename From, typename To>
bool convert(const std::byte* source, std::size_t count, std::byte* out) {
  unsigned bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const To value(as_float(source + i * sizeof(From), From{}));
    bad |= not_finite(value);
    std::memcpy(out + i * sizeof(To), &value, sizeof(To));
  }
  return bad == 0;
}

/// Whether no element has a magnitude, sign bit aside, of `limit` or more.
template <typename Bits>
bool all_below(const std::byte* source, std::size_t count, Bits limit) {
  Bits bad = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<Bits>(load<Bits>(source + i * sizeof(Bits)) & std::numeric_limits<Bits>::max());
    bad = static_cast<Bits>(bad | (magnitude >= limit));
  }
  return bad == 0;
}

template <typename To>
bool convert(DType from, const std::byte* source, std::size_t count, std::byte* out) {
  switch (from) {
    case DType::f32: return convert<float, To>(source, count, out);
    case DType::bf16: return convert<bfloat16, To>(source, count, out);
    default: return convert<std::uint16_t, To>(source, count, out);
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& file) : path_(file) {
  const int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // does not wait for a pipe's writer
  check(fd >= 0, "{}: {}", file.string(), std::strerror(errno));
  const std::unique_ptr<const int, void (*)(const int*)> closed(&fd, [](const int* f) { close(*f); });
  struct stat status {};
  check(fstat(fd, &status) == 0, "{}: {}", file.string(), std::strerror(errno));
  check(S_ISREG(status.st_mode), "{}: not a regular file", file.string());
  size_ = static_cast<std::size_t>(status.st_size);
  check(size_ >= 8, "{}: {} bytes are too few for a safetensors file", file.string(), size_);
  void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
  check(mapped != MAP_FAILED, "{}: cannot be mapped: {}", file.string(), std::strerror(errno));
  data_ = {static_cast<const std::byte*>(mapped), [n = size_](const std::byte* p) { munmap(const_cast<std::byte*>(p), n); }};

  const auto header_bytes = load<std::uint64_t>(data_.get());  // little endian, as are all machines that this runs on
  check(header_bytes <= max_header_bytes, "{}: a header of {} bytes is over the limit of {}", file.string(), header_bytes, max_header_bytes);
  check(header_bytes <= size_ - 8, "{}: the header of {} bytes goes beyond the file's {}", file.string(), header_bytes, size_);
  read_header({reinterpret_cast<const char*>(data_.get()) + 8, header_bytes}, 8 + header_bytes);
}

void SafetensorsFile::read_header(std::string_view header, std::size_t data_begin) {
  const std::string file = path_.string();
  check(header.starts_with('{'), "{}: the header does not begin with a JSON object", file);
  const json object = parse_json_object(header, path_);
  const std::size_t data_bytes = size_ - data_begin;
  for (const auto& [name, info] : object.items()) {
    const std::string tensor = shown(name);
    if (name == "__metadata__") {
      const auto is_string = [](const json& v) { return v.is_string(); };
      check(info.is_object() && std::all_of(info.begin(), info.end(), is_string), "{}: __metadata__ is not a map from text to text", file);
      continue;
    }
    const auto field = [&](const char* key) -> const json& {
      check(info.is_object() && info.contains(key), "{}: tensor {} has no \"{}\"", file, tensor, key);
      return info.at(key);
    };
    const json &dtype = field("dtype"), &shape = field("shape"), &offsets = field("data_offsets");
    for (const auto& [key, value] : info.items())
      check(key == "dtype" || key == "shape" || key == "data_offsets", "{}: tensor {} has the unknown field {}", file, tensor, shown(key));
    check(dtype.is_string(), "{}: tensor {}: its dtype is not a word", file, tensor);
    const auto known = dtype_named(dtype.get_ref<const std::string&>());
    check(known.has_value(), "{}: tensor {} has the dtype {}, which is not known here", file, tensor, shown(dtype.get_ref<const std::string&>()));

    check(shape.is_array() && shape.size() <= Shape::max_rank, "{}: tensor {}: its shape is not a list of at most {} sizes", file, tensor,
          Shape::max_rank);
    std::vector<std::int64_t> sizes;
    std::int64_t bytes = static_cast<std::int64_t>(size_of(*known));
    for (const json& size : shape) {
      check(size.is_number_unsigned() && size.get<std::uint64_t>() <= std::numeric_limits<std::int64_t>::max(),
            "{}: tensor {}: its shape holds {}, which is not a size", file, tensor, shown(size.dump(-1, ' ', false, json::error_handler_t::replace)));
      sizes.push_back(size.get<std::int64_t>());
      check(!__builtin_mul_overflow(bytes, sizes.back(), &bytes), "{}: tensor {}: its shape has more elements than can be counted", file, tensor);
    }

    const auto is_offset = [](const json& v) { return v.is_number_unsigned(); };
    check(offsets.is_array() && offsets.size() == 2 && std::all_of(offsets.begin(), offsets.end(), is_offset),
          "{}: tensor {}: its data_offsets are not two offsets", file, tensor);
    const auto begin = offsets[0].get<std::uint64_t>(), end = offsets[1].get<std::uint64_t>();
    check(begin <= end && end <= data_bytes, "{}: tensor {}: its data_offsets [{}, {}] are outside the file's {} bytes of data", file, tensor, begin,
          end, data_bytes);
    check(end - begin == static_cast<std::uint64_t>(bytes), "{}: tensor {}: {} {} is {} bytes, but its data_offsets hold {}", file, tensor,
          name_of(*known), to_string(shape_of(sizes)), bytes, end - begin);
    tensors_.push_back({name, *known, shape_of(sizes), data_begin + begin, static_cast<std::size_t>(bytes)});
  }

  std::sort(tensors_.begin(), tensors_.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return std::pair(a.offset, a.bytes) < std::pair(b.offset, b.bytes); });
  std::size_t next = data_begin;
  for (const TensorInfo& tensor : tensors_) {
    check(tensor.offset == next, "{}: tensor {}: its data {}", file, shown(tensor.name),
          tensor.offset < next ? "overlap those of another tensor" : "begin after a gap");
    next += tensor.bytes;
    by_name_.emplace(tensor.name, by_name_.size());
  }
  check(next == size_, "{}: {} bytes after the last tensor's data", file, size_ - next);
}

const TensorInfo* SafetensorsFile::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &tensors_[found->second];
}

void SafetensorsFile::read(const TensorInfo& tensor, std::int64_t first, std::int64_t count, DType dtype, void* out) const {
  check(tensor.dtype == DType::f32 || tensor.dtype == DType::bf16 || tensor.dtype == DType::f16,
        "{}: tensor {} is {}; weights are F32, BF16 or F16", path_.string(), shown(tensor.name), name_of(tensor.dtype));
  check(dtype == DType::f32 || dtype == DType::bf16, "weights are converted to float32 or bfloat16, not to {}", name_of(dtype));
  check(0 <= first && 0 <= count && first <= tensor.shape.numel() - count, "tensor {}: {} elements from {} on, of {}", shown(tensor.name), count,
        first, to_string(tensor.shape));
  const std::byte* source = data_.get() + tensor.offset + static_cast<std::size_t>(first) * size_of(tensor.dtype);
  auto* target = static_cast<std::byte*>(out);
  const auto n = static_cast<std::size_t>(count);
  const bool finite = dtype == DType::f32 ? convert<float>(tensor.dtype, source, n, target) : convert<bfloat16>(tensor.dtype, source, n, target);
  fail_unless(finite, tensor, dtype);
}

void SafetensorsFile::fail_unless(bool finite, const TensorInfo& tensor, DType dtype) const {
  check(finite, "{}: tensor {} holds a NaN, an infinity, or a number too large for {}", path_.string(), shown(tensor.name), name_of(dtype));
}

const std::byte* SafetensorsFile::data(const TensorInfo& tensor) const {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t begin = tensor.offset / page * page;
  madvise(const_cast<std::byte*>(data_.get()) + begin, tensor.offset + tensor.bytes - begin, MADV_POPULATE_READ);  // where the kernel knows it
  return data_.get() + tensor.offset;
}

void SafetensorsFile::check_finite(const TensorInfo& tensor, std::int64_t first, std::int64_t count, DType dtype) const {
  const std::byte* source = data_.get() + tensor.offset + static_cast<std::size_t>(first) * size_of(tensor.dtype);
  const auto n = static_cast<std::size_t>(count);
  constexpr std::int32_t infinity = 0x7f800000, rounds_to_infinity = 0x7f7f8000;  // in bfloat16
  fail_unless(tensor.dtype == DType::bf16 ? all_below<std::int16_t>(source, n, 0x7f80)
                                          : all_below<std::int32_t>(source, n, dtype == DType::bf16 ? rounds_to_infinity : infinity),
              tensor, dtype);
}

void SafetensorsFile::release(const TensorInfo& tensor) const {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t begin = tensor.offset / page * page, end = tensor.offset + tensor.bytes;
  madvise(const_cast<std::byte*>(data_.get()) + begin, end - begin, MADV_DONTNEED);
}

namespace {

/// Also false for a name that the file system refuses, where std::filesystem::exists would throw.
bool is_there(const std::filesystem::path& file) {
  std::error_code refused;
  return std::filesystem::exists(file, refused);
}

/// weight_map of the index: tensor → plain file name.
std::map<std::string, std::string> read_index(const std::filesystem::path& index) {
  const json object = parse_json_object(read_file(index, max_header_bytes), index);
  check(object.contains("weight_map") && object.at("weight_map").is_object(), "{}: has no \"weight_map\" from tensors to files", index.string());
  std::map<std::string, std::string> shards;
  for (const auto& [tensor, shard] : object.at("weight_map").items()) {
    check(shard.is_string(), "{}: tensor {}: its file is not a name", index.string(), shown(tensor));
    const auto& name = shard.get_ref<const std::string&>();
    check(!name.empty() && name != "." && name != ".." && name.find_first_of(std::string_view("/\\\0", 3)) == name.npos,
          "{}: tensor {}: {} is not a plain file name", index.string(), shown(tensor), shown(name));
    shards.emplace(tensor, name);
  }
  return shards;
}

}  // namespace

SafetensorsFolder::SafetensorsFolder(const std::filesystem::path& folder) : path_(folder / single_name) {
  if (is_there(path_)) {
    files_.push_back(std::make_unique<SafetensorsFile>(path_));
    for (const TensorInfo& tensor : files_[0]->tensors()) tensors_.emplace(tensor.name, Entry{files_[0].get(), &tensor});
    return;
  }
  path_ = folder / index_name;
  check(is_there(path_), "{}: holds neither {} nor {}", folder.string(), single_name, index_name);
  const std::map<std::string, std::string> index = read_index(path_);
  std::map<std::string, const SafetensorsFile*> shards;
  for (const auto& [tensor, shard] : index) {
    const SafetensorsFile*& file = shards[shard];
    if (!file) {
      check(is_there(folder / shard), "{}: the file {} of tensor {} is missing", path_.string(), shown(shard), shown(tensor));
      file = files_.emplace_back(std::make_unique<SafetensorsFile>(folder / shard)).get();
    }
    const TensorInfo* info = file->find(tensor);
    check(info != nullptr, "{}: has no tensor {}, which {} looks for there", file->path().string(), shown(tensor), index_name);
    tensors_.emplace(tensor, Entry{file, info});
  }
  for (const auto& file : files_)
    for (const TensorInfo& tensor : file->tensors()) {
      const auto entry = tensors_.find(tensor.name);
      check(entry != tensors_.end() && entry->second.file == file.get(), "{}: {} does not say that tensor {} is there", file->path().string(),
            index_name, shown(tensor.name));
    }
}

std::vector<std::filesystem::path> weight_files(const std::filesystem::path& folder) {
  if (is_there(folder / single_name)) return {folder / single_name};
  std::vector<std::filesystem::path> files{folder / index_name};
  std::map<std::string, bool> seen;
  for (const auto& [tensor, shard] : read_index(folder / index_name)) seen[shard] = true;
  for (const auto& [shard, used] : seen) files.push_back(folder / shard);
  return files;
}

}  // namespace kvmesh
