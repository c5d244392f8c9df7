// A device's products beside those of its library: what it costs that a row's bits do not depend on the others.
#include "launch/bench_parts.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t calls_at_once = 24;  // then the host waits: a product of a decode step takes less time than to wait for it
constexpr std::int64_t bytes_that_no_cache_holds = std::int64_t{256} << 20;

/// Seconds of a call, each a median over batches of calls.
double seconds_of(Device& device, const std::function<void(std::size_t)>& call) {
  const Tensor one = device.empty(DType::u8, {1}), other = host_tensor(DType::u8, {1});
  std::vector<double> seconds;
  for (const auto begun = Clock::now(); seconds.size() < 6 || Clock::now() - begun < std::chrono::milliseconds(100);) {
    const auto from = Clock::now();
    for (std::size_t i = 0; i < calls_at_once; ++i) call(i);
    device.copy(one, other);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - from).count() / static_cast<double>(calls_at_once));
  }
  seconds.erase(seconds.begin());  // it wakes things up
  return median_of(seconds);
}

struct Kind {
  const char* name;
  std::int64_t k, n;
  std::int64_t rows;
  double calls;
  DType out;
  std::function<const Weight&(std::size_t layer)> weight;
};

/// One pass's products over `rows` rows, `wanted` of which meet the vocabulary; `ratio`: of their times, ours to the library's.
Json products_of(const Gpt& gpt, const char* phase, std::int64_t rows, std::int64_t wanted, double& ratio) {
  Device& device = gpt.device();
  const ModelConfig& c = gpt.config();
  const auto& blocks = gpt.weights().blocks;
  const DType dtype = gpt.dtype();
  const std::int64_t h = c.head_dim(), heads = c.q_heads * h, qkv = heads + 2 * c.kv_heads * h;
  const auto layers = static_cast<double>(blocks.size());
  const auto of = [&](Weight GptWeights::Block::*w) { return [&blocks, w](std::size_t i) -> const Weight& { return blocks[i % blocks.size()].*w; }; };
  const Kind kinds[] = {{"qkv", c.d_emb, qkv, rows, layers, dtype, of(&GptWeights::Block::qkv)},
                        {"wo", heads, c.d_emb, rows, layers, dtype, of(&GptWeights::Block::wo)},
                        {"fc1", c.d_emb, c.mlp_columns(), rows, layers, dtype, of(&GptWeights::Block::fc1)},
                        {"fc2", c.mlp_width(), c.d_emb, rows, layers, dtype, of(&GptWeights::Block::fc2)},
                        {"logits", c.d_emb, c.vocab_size, wanted, 1, DType::f32, [&](std::size_t) -> const Weight& { return gpt.weights().lm_head; }}};
  Json out = Json::array();
  double ours = 0, theirs = 0;
  for (const Kind& kind : kinds) {
    const std::int64_t m = kind.rows, bytes = kind.k * kind.n * static_cast<std::int64_t>(size_of(dtype));
    const Tensor x = noise(device, dtype, {m, kind.k}), y = device.empty(kind.out, {m, kind.n});
    std::vector<Tensor> plain(static_cast<std::size_t>(std::clamp<std::int64_t>((bytes_that_no_cache_holds + bytes - 1) / bytes, 1, static_cast<std::int64_t>(kind.calls))));
    for (Tensor& w : plain) w = noise(device, dtype, {kind.k, kind.n});
    const Device::Product product = device.library_product(x, plain[0], y);
    const double own = seconds_of(device, [&](std::size_t i) { device.linear(x, kind.weight(i), Epilogue::none, y); });
    const double library = seconds_of(device, [&](std::size_t i) { product(x, plain[i % plain.size()], y); });
    ours += kind.calls * own, theirs += kind.calls * library;
    out.push_back({{"phase", phase}, {"name", kind.name}, {"rows", m}, {"k", kind.k}, {"n", kind.n}, {"calls", kind.calls}, {"seconds", own}, {"library_seconds", library}, {"ratio", own / library}});
  }
  ratio = ours / theirs;
  return out;
}

}  // namespace

Json bench_products(const Gpt& gpt, const BenchOptions& o, std::int64_t rows) {
  if (gpt.weights().blocks.front().qkv.quantize != Quantize::none) return nullptr;
  const Tensor one = gpt.device().empty(DType::f32, {1, 1});
  if (!gpt.device().library_product(one, one, one)) return nullptr;
  const std::int64_t prompts = std::clamp<std::int64_t>(Gpt::chunk_tokens / o.prompt_len, 1, rows), tokens = prompts * std::min(o.prompt_len, Gpt::chunk_tokens);
  double decode = 0, prefill = 0;
  Json out = {{"products", products_of(gpt, "decode", rows, rows, decode)}};
  for (Json& p : products_of(gpt, "prefill", tokens, prompts, prefill)) out["products"].push_back(std::move(p));
  out["decode_ratio"] = decode, out["prefill_ratio"] = prefill;
  return out;
}

void print_products(const Json& products) {
  fmt::print("\n{:<8} {:<8} {:>6} {:>7} {:>7} {:>11} {:>11} {:>7}\n", "pass", "product", "rows", "K", "N", "µs", "library's", "ratio");
  for (const Json& p : products["products"]) {
    fmt::print("{:<8} {:<8} {:>6} {:>7} {:>7} {:>11.1f} {:>11.1f} {:>7.2f}\n", p["phase"].get<std::string>(), p["name"].get<std::string>(), p["rows"].get<std::int64_t>(), p["k"].get<std::int64_t>(),
               p["n"].get<std::int64_t>(), 1e6 * p["seconds"].get<double>(), 1e6 * p["library_seconds"].get<double>(), p["ratio"].get<double>());
  }
  fmt::print("equal bits: a decode step's products take {:.2f} of the library's time, a prompt's {:.2f}\n", products["decode_ratio"].get<double>(), products["prefill_ratio"].get<double>());
}

}  // namespace kvmesh
