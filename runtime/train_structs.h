// What an optimizer's operations are told: plain structs that host and device code share.
#pragma once

#include <cstdint>

namespace kvmesh {

/// Which coordinates weight decay touches, given a step p -= lr · u.
enum class DecayRule : std::uint8_t {
  cautious,  ///< where u · p ≥ 0: the step shrinks the weight, and decay shrinks it further (arXiv 2510.12402)
  original,  ///< where u · p ≤ 0: the original program tests the update when it is negated already, so that it decays where the step grows the weight
  plain,     ///< everywhere
};

struct Decay {
  float rate = 0;  ///< p -= rate · p, next to the step; the learning rate is in it
  DecayRule rule = DecayRule::cautious;
};

/// Loshchilov and Hutter, arXiv 1711.05101, in optax's arrangement.
struct AdamwStep {
  float lr = 0, beta1 = 0.8f, beta2 = 0.95f, eps = 1e-10f;
  float correction1 = 1, correction2 = 1;  ///< 1 - beta^t
  float scale = 1;                         ///< of the gradient
  Decay decay;
};

/// Jordan et al., kellerjordan.github.io/posts/muon, in the arrangement of optax.contrib.muon.
struct MuonStep {
  float beta = 0.95f;
  float correction_m = 1, correction_g = 1;  ///< 1 - beta^(t+1) of the momentum, 1 - beta^t of the gradient
  float scale = 1;                           ///< of the gradient
};

}  // namespace kvmesh
