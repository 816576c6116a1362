// Softmax of each column over segments (the edges into each destination of a graph), and its backward.
#pragma once
#include "segments/sum.h"

namespace eqtp {

// out[e] = exp(x[e] - m) / (sum of exp(x[f] - m)) over the rows f of e's segment, m the largest of them. The rows of x
// are x_stride apart, those of out follow each other: [e, c]
#define EQTP_SEGMENT_SOFTMAX                           \
  void segment_softmax_f32(const SegmentArgs<float>&); \
  void segment_softmax_f64(const SegmentArgs<double>&)
EQTP_DECLARE_LEVELS(EQTP_SEGMENT_SOFTMAX)

// out[e] = y[e] (x[e] - sum of y[f] x[f]) over the rows f of e's segment; x: gradient of the softmax y, out: gradient
// of its argument
template <class T>
struct SoftmaxBwdArgs {
  SegmentArgs<T> segment;
  int64_t y_stride;
  const T* y;
};
#define EQTP_SEGMENT_SOFTMAX_BWD                              \
  void segment_softmax_bwd_f32(const SoftmaxBwdArgs<float>&); \
  void segment_softmax_bwd_f64(const SoftmaxBwdArgs<double>&)
EQTP_DECLARE_LEVELS(EQTP_SEGMENT_SOFTMAX_BWD)

}  // namespace eqtp
