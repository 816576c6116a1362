// out[n] = sum over the edges e into n of the channelwise tensor product of x[src[e]], y[e], w[e]; and, with one edge
// per row, the plain product.
#pragma once
#include "channelwise/path.h"

namespace eqtp {

// Raw pointers and sizes. Strides are of rows, in elements; the elements of a row are contiguous. Outputs are
// contiguous; a null output is not wanted.
template <class T>
struct ConvArgs {
  const PlanColumns<T>* columns;
  int64_t num_src, num_dst, num_edges;
  bool rows;  // the plain product: edge n joins row n of x to row n of the output; no graph
  const int64_t *src, *ptr, *order;  // [e], CSR by destination [num_dst + 1], edge ids [e]
  const T *x, *y, *w, *g;  // [num_src, dim1], [e, dim2], [e, numel], [num_dst, dim_out]
  const T *tx, *ty, *tw;  // direction (bwdbwd)
  int64_t x_stride, y_stride, w_stride, g_stride, tx_stride, ty_stride, tw_stride;
  T *out, *gx, *gy, *gw;  // [num_dst, dim_out], [num_src, dim1], [e, dim2], [e, numel]
  int threads;
};

#define EQTP_CONV                              \
  void conv_f32(Pass, const ConvArgs<float>&); \
  void conv_f64(Pass, const ConvArgs<double>&)
EQTP_DECLARE_LEVELS(EQTP_CONV)

}  // namespace eqtp
