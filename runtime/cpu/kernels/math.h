// exp, tanh and GELU in float32, lane by lane: no table, no libm, the same operations for every lane.
// Source of the polynomials of exp and tanh: S. Moshier's Cephes library, expf and tanhf.
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

/// x · Φ(x), within 4 ulp for |x| ≤ 3 and 4e-7 of x's size beyond. The tail Φ(-|x|) is exp(-x²/2) times a polynomial in t = 1 / (1 + 5/16·|x|), fitted to 1e-8.
KVMESH_INLINE Floats gelu(Floats x) {
  const Floats a = (Floats)((Words)x & 0x7fffffffu);
  const Floats t = 1.0f / fma(a, splat(0.3125f), splat(1.0f));
  Floats p = splat(-1.8479573e-2f);
  p = fma(p, t, splat(8.8445991e-2f));
  p = fma(p, t, splat(-1.4400621e-1f));
  p = fma(p, t, splat(6.4771585e-2f));
  p = fma(p, t, splat(5.4331459e-3f));
  p = fma(p, t, splat(5.1236574e-2f));
  p = fma(p, t, splat(9.1583036e-2f));
  p = fma(p, t, splat(1.1156328e-1f));
  p = fma(p, t, splat(1.2478877e-1f));
  p = fma(p, t, splat(1.2466340e-1f));
  const Floats tail = exp(-0.5f * (x * x)) * (p * t);
  return x * if_less(x, Floats{}, tail, 1.0f - tail);
}

/// ½·x·(1 + tanh u), u = √(2/π)·(x + 0.044715·x³), as x / (1 + exp(-2u)): without the difference from 1 that would cancel.
KVMESH_INLINE Floats gelu_tanh(Floats x) {
  const Floats twice = x * fma(x * x, splat(7.1354816e-2f), splat(1.5957691f));
  return x / (1.0f + exp(-max(twice, splat(-88.0f))));
}

}  // namespace
}  // namespace kvmesh::cpu::KVMESH_ISA
