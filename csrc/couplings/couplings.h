// Sums of products of components from tables of coupling coefficients (eqtp/plans/couplings.py).
#pragma once
#include "common/samples.h"

namespace eqtp {

// Component k of the outputs, which stand in a row: sum over its groups of (one component, or 1) times the sum over the
// group's entries of c x[a] x[b], x: all components of the inputs in a row
template <class T>
struct CouplingArgs {
  int inputs, outputs;
  const int32_t* out_ptr;    // [components of the outputs + 1] into group_ptr and scale
  const int32_t* group_ptr;  // [groups + 1] into a, b, c
  const int32_t* scale;      // [groups] component, or -1 for 1
  const int32_t *a, *b;      // [entries]
  const T* c;                // [entries]
  const int32_t* place;      // 0, 1, 2, .. up to the largest number of components
  const Samples<T>* x;       // [inputs]
  const Samples<T>* y;       // [outputs]
  int64_t count_b, count_c;  // samples
  int threads;
};
EQTP_DECLARE_KERNEL(couple, CouplingArgs);

}  // namespace eqtp
