// Largest value of each column over segments (the edges into each destination of a graph), and the edge it comes from.
#pragma once
#include "segments/sum.h"

namespace eqtp {

// out[n, i] = x[arg[n, i], i], the first of the largest (or the first NaN) of x[order[t], i] for t in [ptr[n], ptr[n +
// 1]); no edges: 0 and arg = e. x [e, c], rows x_stride apart, out and arg [num, c]
template <class T>
struct MaxArgs {
  SegmentArgs<T> segment;
  int64_t* arg;
};
#define EQTP_SEGMENT_MAX                       \
  void segment_max_f32(const MaxArgs<float>&); \
  void segment_max_f64(const MaxArgs<double>&)
EQTP_DECLARE_LEVELS(EQTP_SEGMENT_MAX)

}  // namespace eqtp
