// How far a model's predictions are from those of another that should be alike: one with rounded weights, say.
#pragma once

#include "model/gpt.h"

#include <span>
#include <vector>

namespace kvmesh {

struct Drift {
  std::int64_t tokens = 0;     ///< whose log-probabilities are compared: all but each sequence's first
  double mean = 0, most = 0;   ///< |difference| of their log-probabilities
  double divergence = 0;       ///< Kullback–Leibler, of the other's distribution from the first's, mean over these tokens, in nats
  double same_top = 0;         ///< part of them where the most probable token is the same
};

/// Both models read each sequence of 2 … seqlen ids. They are of one config, on one device.
Drift drift_between(const Gpt& first, const Gpt& other, std::span<const std::vector<std::int32_t>> sequences);

/// `count` sequences of `tokens` ids below `vocab_size`, the same for the same seed.
std::vector<std::vector<std::int32_t>> random_sequences(std::int64_t count, std::int64_t tokens, std::int64_t vocab_size, std::uint32_t seed);

}  // namespace kvmesh
