// Real spherical harmonics in e3nn's order (y is the polar axis): values, gradient, and the derivative of both along a
// direction.
#pragma once
#include "common/simd.h"

namespace eqtp {

// Constants of one (m, l), l from m to lmax within m from 0 to lmax, in this order (eqtp/ops/spherical_harmonics.py,
// `constants`). With P_lm = N_lm r^(l-m) P_l^m(y/r) / sin^m, scaled so that Y_l(+-m) = P_lm * {Re, Im}(z + i x)^m:
//   P_lm = a y P_(l-1)m + b r^2 P_(l-2)m  (P_mm = a),  dP_lm/dy = e P_(l-1)m,  dP_lm/dx = x f P_(l-1)(m+1)
template <class T>
struct HarmonicsConstants {
  T a, b, e, f;
};

template <class T>
struct HarmonicsArgs {
  int lmax;
  const HarmonicsConstants<T>* constants;
  int64_t columns;  // of g and out: sum of 2 l + 1 over the degrees asked for
  const int32_t* column;  // [columns] which of the (lmax + 1)^2 components; null: all of them in order
  bool normalize;  // harmonics of xyz / |xyz| (0 for l > 0 at the zero vector), else r^l Y_l
  int64_t points;
  const T *xyz, *g, *c;  // [points, 3], [points, columns], [points, 3]
  int64_t xyz_row, xyz_col, g_row, c_row, c_col;  // strides, in elements; a row of g is contiguous
  T *out, *gxyz;  // [points, columns], [points, 3], contiguous; null: not wanted
  int threads;
};

// c null, g null: out = Y. c null: gxyz = sum_lm g_lm grad Y_lm. Else out = c . grad Y, gxyz = derivative of that
// gradient along c; g null: 0.
EQTP_DECLARE_KERNEL(harmonics, HarmonicsArgs);

}  // namespace eqtp
