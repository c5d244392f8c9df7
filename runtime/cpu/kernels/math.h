// exp and tanh in float32, lane by lane: no table, no libm, the same operations for every lane.
// Source of the polynomials: S. Moshier's Cephes library, expf and tanhf.
#pragma once

#include "runtime/cpu/kernels/simd.h"

namespace kvmesh::cpu::KVMESH_ISA {
namespace {

/// eˣ for x ≤ 88, within 2 ulp; 0 below the smallest normal number's logarithm and for -inf.
KVMESH_INLINE Floats exp(Floats x) {
  const Floats shift = splat(12582912.0f);  // 1.5 · 2²³: adding it rounds to an integer, which the low bits then hold
  const Floats lowest = splat(-87.33654f);
  const Floats y = max(x, lowest);
  const Floats shifted = fma(y, splat(1.44269504088896341f), shift);
  const Floats n = shifted - shift;
  Floats r = fma(n, splat(-0.693359375f), y);  // exact: ln 2's upper part has nine bits
  r = fma(n, splat(2.12194440e-4f), r);
  Floats p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.0f;
  const Floats power = (Floats)(((Words)shifted - (0x4b400000u - 127u)) << 23);
  return if_less(x, lowest, Floats{}, p * power);
}

/// Within a few ulp everywhere, near 0 too.
KVMESH_INLINE Floats tanh(Floats x) {
  const Floats a = (Floats)((Words)x & 0x7fffffffu);
  const Floats z = x * x;
  Floats p = splat(-5.70498872745e-3f);
  p = fma(p, z, splat(2.06390887954e-2f));
  p = fma(p, z, splat(-5.37397155531e-2f));
  p = fma(p, z, splat(1.33314422036e-1f));
  p = fma(p, z, splat(-3.33332819422e-1f));
  const Floats small = fma(p * z, x, x);
  const Floats e = exp(-2.0f * a);  // ≤ 1, so nothing overflows
  const Floats large = (Floats)((Words)((1.0f - e) / (1.0f + e)) | ((Words)x & 0x80000000u));
  return a < 0.625f ? small : x == x ? large : x;
}

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
