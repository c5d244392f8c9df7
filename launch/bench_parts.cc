// What is measured is called until enough time has passed, after one call that is not counted.
#include "launch/bench_parts.h"


#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>

namespace kvmesh {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

double at_share(const std::vector<double>& sorted, double share) {
  const double i = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(i), above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (i - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// Seconds of single calls, for about `budget` seconds and at least 5 times. `waits`: until what the call has enqueued is done.
std::vector<double> measure(Device& device, double budget, const std::function<void()>& call) {
  const Tensor one = device.empty(DType::u8, {1}), other = host_tensor(DType::u8, {1});
  const auto once = [&] {
    const auto from = Clock::now();
    call();
    if (device.queue()) device.copy(one, other);
    return seconds_since(from);
  };
  once();
  std::vector<double> seconds;
  for (const auto begun = Clock::now(); seconds.size() < 5 || seconds_since(begun) < budget;) seconds.push_back(once());
  return seconds;
}

struct Operation {
  const char* name;
  double calls;  // of a pass
  double flops, bytes;
  std::function<void(std::size_t layer)> call;
};

/// The operations of a pass over `segments`, `wanted` rows of which meet the vocabulary.
Json operations_of(const Gpt& gpt, const Limits& limits, const char* phase, std::span<const Segment> segments, std::int64_t wanted, const KvCache& cache) {
  Device& device = gpt.device();
  const ModelConfig& c = gpt.config();
  const std::int64_t d = c.d_emb, h = c.head_dim(), heads = c.q_heads * h, kv = c.kv_heads * h, v = c.vocab_size;
  std::int64_t t = 0;
  for (const Segment& s : segments) t += s.count;
  const std::vector<ModelConfig::Layer> kinds = c.layers();
  double keys = 0, scores = 0;  // read once a segment, met by every query; of an average layer
  for (const ModelConfig::Layer& layer : kinds) {
    for (const Segment& s : segments) {
      for (std::int64_t p = s.begin - s.start; p < s.begin - s.start + s.count; ++p) {
        const double seen = static_cast<double>(layer.window < 0 ? p + 1 : std::min(p, layer.window) + 1) / static_cast<double>(kinds.size());
        scores += seen;
        if (p == s.begin - s.start) keys += seen + static_cast<double>(s.count - 1) / static_cast<double>(kinds.size());
      }
    }
  }
  const DType dtype = gpt.dtype();
  const auto width = static_cast<double>(size_of(dtype));
  const bool integers = gpt.weights().lm_head.quantize == Quantize::int8;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(t)), last(static_cast<std::size_t>(wanted));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 7919 % static_cast<std::size_t>(v));
  for (std::size_t i = 0; i < last.size(); ++i) last[i] = segments[i].offset + segments[i].count - 1;
  const Pass pass = device.prepare(ids, segments, last);
  const Tensor x = noise(device, dtype, {t, d}), normed = noise(device, dtype, {t, d}), qkv = noise(device, dtype, {t, heads + 2 * kv}), q = noise(device, dtype, {t, heads}),
               attended = noise(device, dtype, {t, heads}), hidden = noise(device, dtype, {t, c.mlp_columns()}), inner = noise(device, dtype, {t, c.mlp_width()}), logits = device.empty(DType::f32, {wanted, v}),
               rope = noise(device, DType::f32, {c.seqlen, h});
  const auto& blocks = gpt.weights().blocks;
  const double layers = static_cast<double>(blocks.size()), rows = static_cast<double>(t);
  const auto product = [&](const char* name, std::int64_t k, std::int64_t n, double calls, double m, std::function<void(std::size_t)> call) {
    const double elements = static_cast<double>(k) * static_cast<double>(n);
    return Operation{name, calls, 2 * m * elements, integers ? elements + 4 * static_cast<double>(n) : width * elements, std::move(call)};
  };
  const auto eps = static_cast<float>(c.norm_eps), cap = static_cast<float>(c.logit_soft_cap);
  const Tensor few = x.slice(0, wanted);
  std::vector<Operation> operations = {
      {"embedding", 1, 0, rows * static_cast<double>(d) * width, [&](std::size_t) { device.gather_rows(gpt.weights().embed, pass.ids, x); }},
      {"norm", 2 * layers, 0, 2 * rows * static_cast<double>(d) * width, [&](std::size_t) { device.norm(x, {eps, c.layer_norm, gpt.weights().norm.weight, gpt.weights().norm.bias}, normed); }},
      product("qkv", d, heads + 2 * kv, layers, rows, [&](std::size_t i) { device.linear(normed, blocks[i].qkv, Epilogue::none, qkv); }),
      {"norm, rope, append", layers, 0, 2 * rows * static_cast<double>(heads + 2 * kv) * width, [&](std::size_t i) { device.norm_rope_append(qkv, pass, kinds[i].rope ? rope : Tensor(), {eps, c.head_norms == ModelConfig::HeadNorms::none, blocks[i].q_norm, blocks[i].k_norm}, q, cache.layer(static_cast<std::int64_t>(i))); }},
      {"attention", layers, 4 * scores * static_cast<double>(heads), 2 * keys * static_cast<double>(kv) * width, [&](std::size_t i) { device.attention(q, pass, cache.layer(static_cast<std::int64_t>(i)), kinds[i].window, attended); }},
      product("wo", heads, d, layers, rows, [&](std::size_t i) { device.linear(attended, blocks[i].wo, Epilogue::add, x); }),
      product("fc1", d, c.mlp_columns(), layers, rows, [&](std::size_t i) { device.linear(normed, blocks[i].fc1, epilogue_of(c.activation), hidden); }),
      product("fc2", c.mlp_width(), d, layers, rows, [&](std::size_t i) { device.linear(inner, blocks[i].fc2, Epilogue::add, x); }),
      product("logits", d, v, 1, static_cast<double>(wanted), [&](std::size_t) { device.linear(few, gpt.weights().lm_head, cap > 0 ? Epilogue::soft_cap : Epilogue::none, logits, cap); }),
  };
  if (c.activation == Activation::swiglu) {
    operations.push_back({"swiglu", layers, 0, 3 * rows * static_cast<double>(c.mlp_width()) * width, [&](std::size_t) { device.swiglu(hidden, inner); }});
  }
  if (c.learned_positions > 0) operations.push_back({"positions", 1, 0, 3 * rows * static_cast<double>(d) * width, [&](std::size_t) { device.add_positions(gpt.weights().positions, pass, x); }});
  Json out = Json::array();
  double pass_seconds = 0;
  for (const Operation& o : operations) {
    std::size_t layer = 0;  // every call another layer's weights, as in a pass
    const Json seconds = spread_of(measure(device, 0.1, [&] { o.call(layer++ % blocks.size()); }));
    const double s = seconds["median"];
    pass_seconds += o.calls * s;
    out.push_back({{"phase", phase}, {"name", o.name}, {"rows", o.calls == 1 && o.flops > 0 ? wanted : t}, {"calls", o.calls}, {"seconds", seconds}, {"flops_per_s", o.flops / s}, {"bytes_per_s", o.bytes / s},
                   {"limit_fraction", std::max(o.flops / s / limits.flops_per_s, o.bytes / s / limits.bytes_per_s)}});
  }
  for (Json& o : out) o["share"] = o["calls"].get<double>() * o["seconds"]["median"].get<double>() / pass_seconds;
  return out;
}

}  // namespace

Tensor noise(Device& device, DType dtype, Shape shape, float scale) {
  const Tensor host = host_tensor(dtype, shape), tensor = device.empty(dtype, shape);
  std::uint32_t state = 1;
  for (std::int64_t i = 0; i < host.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f * scale;
    if (dtype == DType::f32) {
      host.data<float>()[i] = value;
    } else {
      static_cast<std::uint16_t*>(host.raw())[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(value) >> 16);
    }
  }
  device.copy(host, tensor);
  return tensor;
}

double median_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  return seconds.empty() ? 0 : at_share(seconds, 0.5);
}

Json spread_of(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  if (seconds.empty()) return {{"median", 0.0}, {"p10", 0.0}, {"p90", 0.0}, {"runs", 0}};
  return {{"median", at_share(seconds, 0.5)}, {"p10", at_share(seconds, 0.1)}, {"p90", at_share(seconds, 0.9)}, {"runs", seconds.size()}};
}

Json bench_operations(const Gpt& gpt, const Limits& limits, const BenchOptions& o, std::int64_t rows) {
  Device& device = gpt.device();
  const std::int64_t seqlen = gpt.config().seqlen;
  const KvCache cache(device, gpt.config(), gpt.dtype(), rows, seqlen);
  for (std::int64_t i = 0; i < gpt.config().num_layers; ++i) {
    for (const Tensor& ring : {cache.layer(i).k, cache.layer(i).v}) {
      const Tensor part = noise(device, gpt.dtype(), {1, ring.size(1), ring.size(2), ring.size(3)});
      for (std::int64_t place = 0; place < rows; ++place) device.copy(part, ring.slice(place, place + 1));
    }
  }
  std::vector<Segment> decode, prefill;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto place = static_cast<std::int32_t>(r);
    decode.push_back({.start = seqlen, .begin = seqlen + o.prompt_len + o.new_tokens / 2, .place = place, .count = 1, .offset = place});
  }
  const std::int64_t prompts = std::clamp<std::int64_t>(Gpt::chunk_tokens / o.prompt_len, 1, rows), tokens = std::min(o.prompt_len, Gpt::chunk_tokens);
  for (std::int64_t p = 0; p < prompts; ++p) {
    prefill.push_back({.start = seqlen, .begin = seqlen, .place = static_cast<std::int32_t>(p), .count = static_cast<std::int32_t>(tokens), .offset = static_cast<std::int32_t>(p * tokens)});
  }
  Json out = operations_of(gpt, limits, "decode", decode, rows, cache);
  for (Json& o_ : operations_of(gpt, limits, "prefill", prefill, prompts, cache)) out.push_back(std::move(o_));
  return out;
}

Json bench_sampler(const Gpt& gpt, std::int64_t rows, double step_seconds) {
  Device& device = gpt.device();
  const std::int64_t v = gpt.config().vocab_size, best = std::min<std::int64_t>(5, v);
  const Tensor logits = noise(device, DType::f32, {rows, v}, 8), tokens = device.empty(DType::i32, {rows}), log_probs = device.empty(DType::f32, {rows, 1 + best}),
               top_ids = device.empty(DType::i32, {rows, best});
  struct Way {
    const char* name;
    SampleRow row;
    bool logprobs;
  };
  SampleRow warm;
  warm.temperature = 1;
  SampleRow top_k = warm, top_p = warm, min_p = warm;
  top_k.top_k = 50;
  top_p.top_p = 0.9f;
  min_p.min_p = 0.05f;
  const Way ways[] = {{"greedy", SampleRow(), false}, {"temperature 1", warm, false}, {"top-k 50", top_k, false},
                      {"top-p 0.9", top_p, false},    {"min-p 0.05", min_p, false},   {"greedy, logprobs 5", SampleRow(), true}};
  Json out = Json::array();
  for (const Way& way : ways) {
    std::vector<SampleRow> how(static_cast<std::size_t>(rows), way.row);
    const Json seconds = spread_of(measure(device, 0.1, [&] {
      for (SampleRow& row : how) ++row.first_count;
      device.sample(logits, how, way.logprobs ? SampleOut{tokens, log_probs, top_ids} : SampleOut{tokens, {}, {}});
    }));
    out.push_back({{"name", way.name}, {"rows", rows}, {"seconds", seconds}, {"share_of_step", step_seconds > 0 ? seconds["median"].get<double>() / step_seconds : 0.0}});
  }
  return out;
}

Json bench_collectives(Communicator& ranks) {
  constexpr std::int64_t largest = 16 << 20;
  const auto n = static_cast<double>(ranks.size());
  Json out = Json::array();
  for (const char* name : {"barrier", "all_gather", "all_reduce", "broadcast"}) {
    const bool barrier = std::strcmp(name, "barrier") == 0, gathers = std::strcmp(name, "all_gather") == 0, reduces = std::strcmp(name, "all_reduce") == 0;
    for (std::int64_t bytes = 8; bytes <= (barrier ? 8 : largest); bytes *= 8) {
      const std::int64_t elements = bytes / 4, own = std::max<std::int64_t>(1, elements / ranks.size());
      const Tensor in = host_tensor(DType::f32, {own}), out_tensor = host_tensor(DType::f32, {own * ranks.size()}), inout = host_tensor(DType::f32, {elements});
      std::memset(in.raw(), 0, in.bytes());
      std::memset(inout.raw(), 0, inout.bytes());
      const auto call = [&] {
        if (barrier) ranks.barrier();
        if (gathers) ranks.all_gather(in, out_tensor.view({ranks.size(), own}));
        if (reduces) ranks.all_reduce(inout, Reduce::sum);
        if (!barrier && !gathers && !reduces) ranks.broadcast(inout, 0);
      };
      std::vector<double> seconds;
      const int runs = bytes <= 1 << 15 ? 200 : bytes <= 1 << 21 ? 40 : 10;  // the same on all ranks
      for (int i = -runs / 10; i < runs; ++i) {
        ranks.barrier();
        const auto from = Clock::now();
        call();
        if (i >= 0) seconds.push_back(seconds_since(from));
      }
      ranks.all_reduce(Tensor(nullptr, seconds.data(), DType::f64, {std::ssize(seconds)}), Reduce::max);  // a collective takes as long as for the last rank
      const std::int64_t moved = barrier ? 0 : gathers ? own * 4 * ranks.size() : bytes;
      const Json spread = spread_of(seconds);
      const double rate = static_cast<double>(moved) / spread["median"].get<double>();
      out.push_back({{"name", name}, {"bytes", moved}, {"seconds", spread}, {"algorithm_bytes_per_s", rate}, {"bus_bytes_per_s", rate * (gathers ? (n - 1) / n : reduces ? 2 * (n - 1) / n : 1.0)}});
    }
  }
  return out;
}

void print_operations(const Json& operations) {
  fmt::print("\n{:<8} {:<20} {:>6} {:>6} {:>11} {:>11} {:>9} {:>9} {:>9} {:>7}\n", "pass", "operation", "rows", "calls", "µs a call", "10–90 %", "GFLOP/s", "GB/s", "of limit", "share");
  for (const Json& o : operations) {
    const Json& s = o["seconds"];
    fmt::print("{:<8} {:<20} {:>6} {:>6} {:>10.1f} {:>11} {:>9.1f} {:>9.1f} {:>7.0f} % {:>5.1f} %\n", o["phase"].get<std::string>(), o["name"].get<std::string>(), o["rows"].get<std::int64_t>(), o["calls"].get<double>(),
               1e6 * s["median"].get<double>(), fmt::format("{:.0f}–{:.0f}", 1e6 * s["p10"].get<double>(), 1e6 * s["p90"].get<double>()), o["flops_per_s"].get<double>() / 1e9, o["bytes_per_s"].get<double>() / 1e9,
               100 * o["limit_fraction"].get<double>(), 100 * o["share"].get<double>());
  }
}

void print_sampler(const Json& sampler) {
  fmt::print("\n{:<20} {:>6} {:>12} {:>12} {:>12}\n", "sampler", "rows", "µs a row", "10–90 %", "of a step");
  for (const Json& o : sampler) {
    const Json& s = o["seconds"];
    const auto rows = o["rows"].get<double>();
    fmt::print("{:<20} {:>6} {:>11.1f} {:>12} {:>10.1f} %\n", o["name"].get<std::string>(), rows, 1e6 * s["median"].get<double>() / rows,
               fmt::format("{:.1f}–{:.1f}", 1e6 * s["p10"].get<double>() / rows, 1e6 * s["p90"].get<double>() / rows), 100 * o["share_of_step"].get<double>());
  }
}

void print_collectives(const Json& collectives) {
  fmt::print("\n{:<12} {:>10} {:>11} {:>14} {:>14} {:>12}\n", "collective", "bytes", "µs", "10–90 %", "algorithm GB/s", "bus GB/s");
  for (const Json& o : collectives) {
    const Json& s = o["seconds"];
    fmt::print("{:<12} {:>10} {:>10.1f} {:>14} {:>14.3f} {:>12.3f}\n", o["name"].get<std::string>(), o["bytes"].get<std::int64_t>(), 1e6 * s["median"].get<double>(),
               fmt::format("{:.1f}–{:.1f}", 1e6 * s["p10"].get<double>(), 1e6 * s["p90"].get<double>()), o["algorithm_bytes_per_s"].get<double>() / 1e9, o["bus_bytes_per_s"].get<double>() / 1e9);
  }
}

}  // namespace kvmesh
