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

/// Rows [k, n] of a part, to be packed or copied.
using Rows = std::function<Tensor(const Part&, cpu::ThreadPool&)>;

/// As the file has them where it can be packed from there, else a copy as `dtype`.
Tensor read_rows(const SafetensorsFolder& files, const Part& part, DType dtype, cpu::ThreadPool& pool) {
  const auto whole = [&](const SafetensorsFile& file, const TensorInfo& tensor, const auto& body) {
    pool.parallel_for(tensor.shape.numel(), grain, [&](std::int64_t begin, std::int64_t end) { body(file, tensor, begin, end - begin); });
  };
  const auto& [first, only] = files.tensors().find(part.names[0])->second;
  const std::byte* data = first->data(*only);
  if (part.names.size() == 1 && only->dtype != DType::f16 && reinterpret_cast<std::uintptr_t>(data) % size_of(only->dtype) == 0) {
    whole(*first, *only, [&](const SafetensorsFile& file, const TensorInfo& t, std::int64_t at, std::int64_t count) { file.check_finite(t, at, count, dtype); });
    void* const mapped = const_cast<std::byte*>(data);
    return {std::shared_ptr<void>(mapped, [file = first, tensor = only](void*) { file->release(*tensor); }), mapped, only->dtype, {part.k, part.n}};
  }
  const Tensor rows = host_tensor(dtype, {part.k, part.n});
  auto* const out = static_cast<std::byte*>(rows.raw());
  const std::size_t size = size_of(dtype);
  std::int64_t column = 0;
  for (const std::string& name : part.names) {
    const auto& [file, tensor] = files.tensors().find(name)->second;
    file->data(*tensor);
    const std::int64_t width = tensor->shape.numel() / part.k;
    pool.parallel_for(part.k, std::max<std::int64_t>(1, grain / width), [&](std::int64_t begin, std::int64_t end) {
      if (width == part.n) return file->read(*tensor, begin * width, (end - begin) * width, dtype, out + static_cast<std::size_t>(begin * width) * size);
      for (std::int64_t r = begin; r < end; ++r) file->read(*tensor, r * width, width, dtype, out + static_cast<std::size_t>(r * part.n + column) * size);
    });
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
void pack(const std::vector<const Part*>& share, DType dtype, const Device& device, int threads, const Rows& rows, void* memory) {
  cpu::ThreadPool pool(threads);
  const auto pack_one = [&](const Part& part) {
    std::byte* const target = static_cast<std::byte*>(memory) + part.offset;
    const Tensor matrix = rows(part, pool);
    if (part.packed) return device.pack_weight(matrix, dtype, target);
    pool.parallel_for(part.k * part.n, grain, [&](std::int64_t begin, std::int64_t end) {
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

GptWeights weights_in(const Layout& layout, const ModelConfig& config, DType dtype, Device& device, const Tensor& packed) {
  const auto arena = std::make_shared<Tensor>(device.resident(packed));
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

int threads_or_all(int threads, const ProcessGroup& group) { return threads > 0 ? threads : std::max(1, cpu::available_cpus() / group.local_size()); }

}  // namespace

GptWeights load_weights(const std::filesystem::path& folder, const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group, const LoadOptions& options) {
  check(dtype == DType::f32 || dtype == DType::bf16, "weights are float32 or bfloat16, not {}", name_of(dtype));
  const int threads = threads_or_all(options.threads, group);
  // Checked before the memory is asked for, so that a wrong config is told as such.
  std::unique_ptr<const SafetensorsFolder> files;
  work_on_host(group, group.local_size(), [&](int) {
    files = std::make_unique<const SafetensorsFolder>(folder);
    check_params(*files, config);
  });
  const Layout layout = make_layout(config, dtype, device);
  const auto build = [&] {
    return share_on_host(group, static_cast<std::int64_t>(layout.bytes), [&](void* memory, int part, int parts) {
      pack(divide(layout, parts)[static_cast<std::size_t>(part)], dtype, device, threads,
           [&](const Part& p, cpu::ThreadPool& pool) { return read_rows(*files, p, dtype, pool); }, memory);
    });
  };
  if (options.pack_cache.empty()) return weights_in(layout, config, dtype, device, build());

  PackCache cache(options.pack_cache, folder, options.pack_tag, fmt::format("{} {}", device.kind(), name_of(dtype)), static_cast<std::int64_t>(layout.bytes), threads);
  Tensor packed = cache.open(group);
  if (!packed.defined()) {
    packed = build();
    cache.save(packed, group);
  }
  return weights_in(layout, config, dtype, device, packed);
}

std::size_t weights_bytes(const ModelConfig& config, DType dtype, const Device& device) { return make_layout(config, dtype, device).bytes; }

GptWeights random_weights(const ModelConfig& config, DType dtype, Device& device, ProcessGroup& group, std::uint32_t seed, int threads) {
  const Layout layout = make_layout(config, dtype, device);
  const auto rows = [&](const Part& part, cpu::ThreadPool& pool) {
    const Tensor matrix = host_tensor(dtype, {part.k, part.n});
    const float width = std::sqrt(12.0f / static_cast<float>(part.packed ? part.k : 1));  // of the interval
    pool.parallel_for(part.k * part.n, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        std::uint64_t bits = (std::uint64_t{seed} << 32) + part.offset + static_cast<std::uint64_t>(i);  // splitmix64's steps
        bits = ((bits * 0x9e3779b97f4a7c15u) ^ (bits * 0x9e3779b97f4a7c15u) >> 30) * 0xbf58476d1ce4e5b9u;
        bits = (bits ^ bits >> 27) * 0x94d049bb133111ebu;
        const float x = (static_cast<float>(bits >> 40) * 0x1p-24f - 0.5f) * width;
        if (dtype == DType::bf16) {
          matrix.data<bfloat16>()[i] = bfloat16(x);
        } else {
          matrix.data<float>()[i] = x;
        }
      }
    });
    return matrix;
  };
  const Tensor packed = share_on_host(group, static_cast<std::int64_t>(layout.bytes), [&](void* memory, int part, int parts) {
    pack(divide(layout, parts)[static_cast<std::size_t>(part)], dtype, device, threads_or_all(threads, group), rows, memory);
  });
  return weights_in(layout, config, dtype, device, packed);
}

}  // namespace kvmesh
