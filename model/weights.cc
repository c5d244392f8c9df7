// Weights packed into memory that a host's ranks share: every rank of the host packs a part.
#include "model/checkpoint.h"

#include "model/pack_cache.h"
#include "runtime/cpu/thread_pool.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

namespace kvmesh {
namespace {

constexpr std::int64_t grain = 1 << 18;  // elements that a thread takes at once

/// One group of parameters in the arena.
struct Part {
  ParamGroup group;
  DType dtype;  // of its elements, or of what it multiplies
  Quantize quantize = Quantize::none;
  std::size_t offset = 0, bytes = 0;

  std::int64_t numel() const { return group.k * group.n; }
};

struct Layout {
  std::vector<Part> parts;  // as param_groups
  std::size_t bytes = 0;
};

/// Matrices packed, tables as `dtype`, vectors as float32.
Layout make_layout(const ModelConfig& config, DType dtype, Quantize quantize, const Device& device) {
  Layout layout;
  for (ParamGroup& group : param_groups(config)) {
    const DType own = group.is_matrix() || group.is_table() ? dtype : DType::f32;
    const Quantize kept = group.is_matrix() ? quantize : Quantize::none;
    const std::size_t bytes = group.is_matrix() ? device.weight_bytes(own, group.k, group.n, kept) : static_cast<std::size_t>(group.k * group.n) * size_of(own);
    layout.parts.push_back({std::move(group), own, kept, layout.bytes, bytes});
    layout.bytes += (bytes + 63) / 64 * 64;
  }
  return layout;
}

/// Rows [k, n] of a part, to be packed or copied.
using Rows = std::function<Tensor(const Part&, cpu::ThreadPool&)>;

using Entries = std::map<std::string, SafetensorsFolder::Entry>;  // by the parameter's name

/// Columns [column, column + width) of `rows` [k, n] from a tensor [width, k]: blocks of its rows are read and turned.
void read_transposed(const SafetensorsFolder::Entry& from, std::int64_t width, std::int64_t column, const Tensor& rows, cpu::ThreadPool& pool) {
  constexpr std::int64_t block = 64;
  const std::int64_t k = rows.size(0), n = rows.size(1);
  pool.parallel_for((width + block - 1) / block, 1, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::byte> buffer(static_cast<std::size_t>(block * k) * size_of(rows.dtype()));
    for (std::int64_t b = begin; b < end; ++b) {
      const std::int64_t first = b * block, count = std::min(block, width - first);
      from.file->read(*from.tensor, first * k, count * k, rows.dtype(), buffer.data());
      const auto turn = [&](auto* out) {
        const auto* in = reinterpret_cast<const std::remove_pointer_t<decltype(out)>*>(buffer.data());
        for (std::int64_t i = 0; i < k; ++i) {
          for (std::int64_t j = 0; j < count; ++j) out[i * n + column + first + j] = in[j * k + i];
        }
      };
      rows.dtype() == DType::bf16 ? turn(static_cast<std::uint16_t*>(rows.raw())) : turn(static_cast<std::uint32_t*>(rows.raw()));
    }
  });
}

/// As the file has them where it can be packed from there, else a copy as the part's dtype, or as float32 where integers are made of it.
Tensor read_rows(const Entries& entries, const Part& part, cpu::ThreadPool& pool) {
  const ParamGroup& group = part.group;
  const DType dtype = part.quantize == Quantize::none ? part.dtype : DType::f32;
  const std::int64_t k = group.k, n = group.n;
  const auto& [first, only] = entries.at(group.params[0].name);
  const std::byte* data = first->data(*only);
  if (group.params.size() == 1 && !group.transposed && only->dtype != DType::f16 && reinterpret_cast<std::uintptr_t>(data) % size_of(only->dtype) == 0) {
    pool.parallel_for(part.numel(), grain, [&, file = first, tensor = only](std::int64_t begin, std::int64_t end) { file->check_finite(*tensor, begin, end - begin, dtype); });
    void* const mapped = const_cast<std::byte*>(data);
    return {std::shared_ptr<void>(mapped, [file = first, tensor = only](void*) { file->release(*tensor); }), mapped, only->dtype, {k, n}};
  }
  const Tensor rows = host_tensor(dtype, {k, n});
  auto* const out = static_cast<std::byte*>(rows.raw());
  const std::size_t size = size_of(dtype);
  std::int64_t column = 0;
  for (const ParamSpec& spec : group.params) {
    const SafetensorsFolder::Entry& entry = entries.at(spec.name);
    const auto& [file, tensor] = entry;
    file->data(*tensor);
    const std::int64_t width = tensor->shape.numel() / k;
    if (group.transposed) {
      read_transposed(entry, width, column, rows, pool);
    } else {
      pool.parallel_for(k, std::max<std::int64_t>(1, grain / width), [&, file = file, tensor = tensor](std::int64_t begin, std::int64_t end) {
        if (width == n) return file->read(*tensor, begin * width, (end - begin) * width, dtype, out + static_cast<std::size_t>(begin * width) * size);
        for (std::int64_t r = begin; r < end; ++r) file->read(*tensor, r * width, width, dtype, out + static_cast<std::size_t>(r * n + column) * size);
      });
    }
    file->release(*tensor);
    column += width;
  }
  return rows;
}

/// What each of `parts` ranks packs, the largest first; all get about as much.
std::vector<std::vector<const Part*>> divide(const Layout& layout, int parts) {
  std::vector<const Part*> order;
  for (const Part& part : layout.parts) order.push_back(&part);
  std::stable_sort(order.begin(), order.end(), [](const Part* a, const Part* b) { return a->bytes > b->bytes; });
  std::vector<std::vector<const Part*>> shares(static_cast<std::size_t>(parts));
  std::vector<std::size_t> load(shares.size());
  for (const Part* part : order) {
    const auto least = static_cast<std::size_t>(std::min_element(load.begin(), load.end()) - load.begin());
    shares[least].push_back(part);
    load[least] += part->bytes;
  }
  return shares;
}

/// Packs a share of the parts into the arena `memory`.
void pack(const std::vector<const Part*>& share, const Device& device, int threads, const Rows& rows, void* memory) {
  cpu::ThreadPool pool(threads);
  const auto pack_one = [&](const Part& part) {
    std::byte* const target = static_cast<std::byte*>(memory) + part.offset;
    const Tensor matrix = rows(part, pool);
    const DType dtype = part.dtype;
    if (part.group.is_matrix()) return device.pack_weight(matrix, dtype, target, part.quantize);
    pool.parallel_for(part.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
      if (matrix.dtype() == dtype) {
        std::memcpy(target + static_cast<std::size_t>(begin) * size_of(dtype), static_cast<const std::byte*>(matrix.raw()) + static_cast<std::size_t>(begin) * size_of(dtype),
                    static_cast<std::size_t>(end - begin) * size_of(dtype));
      } else if (dtype == DType::bf16) {
        for (std::int64_t i = begin; i < end; ++i) reinterpret_cast<bfloat16*>(target)[i] = bfloat16(matrix.data<float>()[i]);
      } else {
        for (std::int64_t i = begin; i < end; ++i) reinterpret_cast<float*>(target)[i] = static_cast<float>(matrix.data<bfloat16>()[i]);
      }
    });
  };
  // A part that would keep one thread busy while the others have nothing left is shared out by itself, the others one a thread.
  const std::size_t bytes = std::accumulate(share.begin(), share.end(), std::size_t{0}, [](std::size_t n, const Part* p) { return n + p->bytes; });
  const auto small = std::find_if(share.begin(), share.end(), [&](const Part* p) { return p->bytes < bytes / static_cast<std::size_t>(4 * threads); });
  std::for_each(share.begin(), small, [&](const Part* p) { pack_one(*p); });
  pool.parallel_for(share.end() - small, 1, [&](std::int64_t begin, std::int64_t end) {
    std::for_each(small + begin, small + end, [&](const Part* p) { pack_one(*p); });
  });
}

GptWeights weights_in(const Layout& layout, const ModelConfig& config, Device& device, const Tensor& packed) {
  using Kind = ParamGroup::Kind;
  const auto arena = std::make_shared<Tensor>(device.resident(packed));
  GptWeights weights;
  weights.blocks.resize(static_cast<std::size_t>(config.num_layers));
  for (const Part& part : layout.parts) {
    const ParamGroup& g = part.group;
    const auto begin = static_cast<std::int64_t>(part.offset), end = begin + static_cast<std::int64_t>(part.bytes);
    const auto weight = [&] { return Weight{.k = g.k, .n = g.n, .dtype = part.dtype, .data = arena->slice(begin, end), .quantize = part.quantize}; };
    const auto tensor = [&](Shape shape) { return Tensor(arena, static_cast<std::byte*>(arena->raw()) + part.offset, part.dtype, shape); };
    GptWeights::Block& block = weights.blocks[static_cast<std::size_t>(g.layer)];
    switch (g.kind) {
      case Kind::embed: weights.embed = tensor({g.k, g.n}); break;
      case Kind::positions: weights.positions = tensor({g.k, g.n}); break;
      case Kind::attn_norm: block.attn_norm.weight = tensor({g.n}); break;
      case Kind::attn_norm_bias: block.attn_norm.bias = tensor({g.n}); break;
      case Kind::qkv: block.qkv = weight(); break;
      case Kind::qkv_bias: block.qkv.bias = tensor({g.n}); break;
      case Kind::q_norm: block.q_norm = tensor({g.n}); break;
      case Kind::k_norm: block.k_norm = tensor({g.n}); break;
      case Kind::wo: block.wo = weight(); break;
      case Kind::wo_bias: block.wo.bias = tensor({g.n}); break;
      case Kind::mlp_norm: block.mlp_norm.weight = tensor({g.n}); break;
      case Kind::mlp_norm_bias: block.mlp_norm.bias = tensor({g.n}); break;
      case Kind::fc1: block.fc1 = weight(); break;
      case Kind::fc1_bias: block.fc1.bias = tensor({g.n}); break;
      case Kind::fc2: block.fc2 = weight(); break;
      case Kind::fc2_bias: block.fc2.bias = tensor({g.n}); break;
      case Kind::norm: weights.norm.weight = tensor({g.n}); break;
      case Kind::norm_bias: weights.norm.bias = tensor({g.n}); break;
      case Kind::lm_head: weights.lm_head = weight(); break;
    }
  }
  return weights;
}

int threads_or_all(int threads, const ProcessGroup& group) { return threads > 0 ? threads : std::max(1, cpu::available_cpus() / group.local_size()); }

}  // namespace

GptWeights load_weights(const std::filesystem::path& folder, const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group, const LoadOptions& options) {
  check(dtype == DType::f32 || dtype == DType::bf16, "weights are float32 or bfloat16, not {}", name_of(dtype));
  const int threads = threads_or_all(options.threads, group);
  const Filled filled = options.broadcast ? Filled::by_first_host : Filled::by_every_host;
  check(!options.broadcast || options.pack_cache.empty(), "weights that come by broadcast are not kept in a pack cache");
  // Checked before the memory is asked for, so that a wrong config is told as such.
  std::unique_ptr<const SafetensorsFolder> files;
  Entries entries;
  work_on_host(group, group.local_size(), [&](int) {
    files = std::make_unique<const SafetensorsFolder>(folder);
    const std::vector<SafetensorsFolder::Entry> found = find_params(*files, config);
    const std::vector<ParamSpec> specs = param_specs(config);
    for (std::size_t i = 0; i < specs.size(); ++i) entries.emplace(specs[i].name, found[i]);
  }, filled);
  const Layout layout = make_layout(config, dtype, options.quantize, device);
  const auto build = [&] {
    return share_on_host(group, static_cast<std::int64_t>(layout.bytes), [&](void* memory, int part, int parts) {
      pack(divide(layout, parts)[static_cast<std::size_t>(part)], device, threads, [&](const Part& p, cpu::ThreadPool& pool) { return read_rows(entries, p, pool); }, memory);
    }, filled);
  };
  if (options.pack_cache.empty()) return weights_in(layout, config, device, build());

  PackCache cache(options.pack_cache, folder, options.pack_tag, fmt::format("{} {}{}", device.kind(), name_of(dtype), options.quantize == Quantize::none ? "" : " int8"), static_cast<std::int64_t>(layout.bytes), threads);
  Tensor packed = cache.open(group);
  if (!packed.defined()) {
    packed = build();
    cache.save(packed, group);
  }
  return weights_in(layout, config, device, packed);
}

std::size_t weights_bytes(const ModelConfig& config, DType dtype, const Device& device, Quantize quantize) { return make_layout(config, dtype, quantize, device).bytes; }

GptWeights random_weights(const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group, std::uint32_t seed, int threads, Quantize quantize) {
  const Layout layout = make_layout(config, dtype, quantize, device);
  const auto rows = [&](const Part& part, cpu::ThreadPool& pool) {
    const Tensor matrix = host_tensor(part.dtype, {part.group.k, part.group.n});
    const float width = std::sqrt(12.0f / static_cast<float>(part.group.is_matrix() ? part.group.k : 1));  // of the interval
    pool.parallel_for(part.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        std::uint64_t bits = (std::uint64_t{seed} << 32) + part.offset + static_cast<std::uint64_t>(i);  // splitmix64's steps
        bits = ((bits * 0x9e3779b97f4a7c15u) ^ (bits * 0x9e3779b97f4a7c15u) >> 30) * 0xbf58476d1ce4e5b9u;
        bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
        const float x = (static_cast<float>(bits >> 40) * 0x1p-24f - 0.5f) * width;
        if (part.dtype == DType::bf16) {
          matrix.data<bfloat16>()[i] = bfloat16(x);
        } else {
          matrix.data<float>()[i] = x;
        }
      }
    });
    return matrix;
  };
  const Tensor packed = share_on_host(group, static_cast<std::int64_t>(layout.bytes), [&](void* memory, int part, int parts) {
    pack(divide(layout, parts)[static_cast<std::size_t>(part)], device, threads_or_all(threads, group), rows, memory);
  });
  return weights_in(layout, config, device, packed);
}

}  // namespace kvmesh
