// The parts of kvmesh bench beside prefill and decode: operations, sampler, collectives, one by one.
#pragma once

#include "launch/job/job.h"
#include "launch/options.h"
#include "launch/job/rows.h"

#include <functional>
#include <vector>

namespace kvmesh {

/// Of seconds that were measured again and again: {"median", "p10", "p90", "runs"}.
Json spread_of(std::vector<double> seconds);
double median_of(std::vector<double> seconds);

/// Every operation of a forward pass on this rank's device, for the rows of a decode step (each with `prompt_len` + half of `new_tokens` keys) and for those
/// of a chunk of a prompt: an object each with name, rows, calls a pass, seconds of a call, its share of the pass, and the fraction of the limit that binds it.
Json bench_operations(const Gpt& gpt, const Limits& limits, const BenchOptions& options, std::int64_t rows);

/// What equal bits cost: the products of a pass by this rank's device and, on plain matrices and without an epilogue, by its library (cuBLASLt), each with the weights of layer
/// after layer: {"products": an object each, "decode_ratio", "prefill_ratio": a pass's products, ours to the library's}. Null: the device
/// has no library, or the weights are int8 (then it has no such product).
Json bench_products(const Gpt& gpt, const BenchOptions& options, std::int64_t rows);

/// Random numbers in [-scale, scale) in a device's tensor.
Tensor noise(Device& device, DType dtype, Shape shape, float scale = 1);

/// Choosing tokens for `rows` rows of logits in the ways that people use: an object each, with the share of a decode step of `step_seconds`.
Json bench_sampler(const Gpt& gpt, std::int64_t rows, double step_seconds);

/// The mesh's collectives in host memory by message size, as nccl-tests and the OSU benchmarks count them: `bytes` is what a rank gets in the end, "algorithm"
/// bandwidth bytes a second, "bus" bandwidth that times (n-1)/n for all_gather, 2·(n-1)/n for all_reduce, 1 for broadcast. Collective.
Json bench_collectives(Communicator& ranks);

/// Tables for people, of what the functions above returned.
void print_operations(const Json& operations);
void print_products(const Json& products);
void print_sampler(const Json& sampler);
void print_collectives(const Json& collectives);

}  // namespace kvmesh
