// Sums, largest values and softmax of each column over segments (the edges into each destination of a graph).
#pragma once
#include <cstdint>

#include "common/simd.h"

namespace eqtp {

// Segment n has the rows order[t] of x for t in [ptr[n], ptr[n + 1]). Rows of x and y are x_stride and y_stride apart,
// those of the results follow each other.
template <class T>
struct SegmentArgs {
  const T* x;  // [e, c]
  int64_t x_stride;
  const int64_t *ptr, *order;  // [num + 1], [e]
  int64_t e, num, c;
  T* out;           // [num, c]; of a softmax [e, c]
  int64_t* arg;     // [num, c]; max only
  const T* y;       // [e, c]; softmax_bwd only
  int64_t y_stride;
  int threads;
};

// out[n] = sum of the segment's rows
EQTP_DECLARE_KERNEL(segment_sum, SegmentArgs);
// out[n, i] = x[arg[n, i], i], the first of the largest (or the first NaN); no edges: 0 and arg = e
EQTP_DECLARE_KERNEL(segment_max, SegmentArgs);
// out[e] = exp(x[e] - m) / (sum of exp(x[f] - m)) over the rows f of e's segment, m the largest of them
EQTP_DECLARE_KERNEL(segment_softmax, SegmentArgs);
// out[e] = y[e] (x[e] - sum of y[f] x[f]) over the rows f of e's segment; x: gradient of the softmax y, out: gradient
// of its argument
EQTP_DECLARE_KERNEL(segment_softmax_bwd, SegmentArgs);

}  // namespace eqtp
