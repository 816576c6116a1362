// Products of functions on the sphere on a folded grid: runs a program of eqtp/plans/signals.py with the tables of
// eqtp/math/sphere.py (`Fold`), whose docstrings have the mathematics. Sizes: degrees to lmax; M = lmax + 1 made even;
// K = lmax / 2 + 1; R rows and Q columns of the octant.
#pragma once
#include "common/samples.h"

namespace eqtp {

// Transforms of degrees to lmax. Components are kept in blocks [2 (x), M (m), 2 (y), K (k)], orders on the grid as [2
// (x), 2 (p), M / 2, 2 (y)], m = 2 i + p.
template <class T>
struct Transform {
  int lmax;
  const int32_t* place;  // [(lmax + 1)^2] in blocks
  const T* legendre[3];  // [M, 2, K, R] of the values, of d/dbeta and of d/dalpha / sin(beta)
  const T* azimuth;  // [2, M, Q]
  const T* turned;  // [2, M, Q] of d/dalpha / sin(beta)
  const T* back;  // [2, 2, Q, M / 2]
  const T* projection;  // [M, 2, R, K]
};

// Outputs = projections of sums of terms, each a coefficient times some fields (input, and which field of it), at every
// point of the grid
template <class T>
struct SignalsArgs {
  int rows, columns;  // of the octant
  int inputs, outputs, fields;
  const Transform<T>* in;  // [inputs]
  const Transform<T>* out;  // [outputs]
  const int32_t* field;  // [fields, 2] input, and 0, 1 or 2 as in `legendre`; sorted by input
  const int32_t* term_ptr;  // [outputs + 1] into coefficient and factor_ptr
  const T* coefficient;  // [terms]
  const int32_t* factor_ptr;  // [terms + 1] into factor
  const int32_t* factor;  // fields
  const Samples<T>* x;  // [inputs]
  const Samples<T>* y;  // [outputs]
  int64_t count_b, count_c;  // samples
  int threads;
};
EQTP_DECLARE_KERNEL(signals, SignalsArgs);

}  // namespace eqtp
