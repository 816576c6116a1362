// Sums of rows over segments (the edges into each destination of a graph), and the CSR form of an index.
#pragma once
#include "simd.h"

namespace eqtp {

// out[n] = sum over t in [ptr[n], ptr[n + 1]) of x[order[t]]; x [e, c], rows x_stride apart, out [num, c]
template <class T>
struct SegmentArgs {
  int64_t num, c, x_stride;
  const int64_t *ptr, *order;
  const T* x;
  T* out;
  int threads;
};
#define EQTP_SEGMENT                               \
  void segment_sum_f32(const SegmentArgs<float>&); \
  void segment_sum_f64(const SegmentArgs<double>&)
EQTP_DECLARE_LEVELS(EQTP_SEGMENT)

}  // namespace eqtp
