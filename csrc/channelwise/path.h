// The channelwise (uvu, second multiplicity 1) tensor product of one path on a few edges that share their output row.
//
//   y-contracted coefficients  M[k, i] = sum_j C[i, j, k] y[j]                       (one per edge, shared by all
//                              channels u)
//   fwd      out[k, u] += w[u] sum_i M[k, i] x[i, u]
//   bwd      with S[i, u] = sum_k M[k, i] g[k, u]:
//            gx[i, u] += w[u] S[i, u]      gw[u] = sum_i S[i, u] x[i, u]      gM[k, i] = sum_u g[k, u] w[u] x[i, u]
//              gy[j] = sum_ik C[i, j, k] gM[k, i]
//   bwdbwd   the derivative of (out, gx, gy, gw) along a direction (tx, ty, tw) of (x, y, w), which is what the
//            gradient of a loss of (gx, gy, gw) needs
//            when (tx, ty, tw) are its cotangents; TM[k, i] = sum_j C[i, j, k] ty[j]
#pragma once
#include "channelwise/plan.h"
#include "common/simd.h"

namespace eqtp {

constexpr int EDGES = 8;  // edges of one destination that are worked on together

// Rows of up to EDGES edges; x, gx, g, out are blocked (plan.h), w and gw as padded weights.
template <class T>
struct EdgeBlock {
  int n;
  const T *x[EDGES], *m[EDGES], *w[EDGES];  // [xt], [mt], [wt]
  const T *tx[EDGES], *tm[EDGES], *tw[EDGES];  // bwdbwd: the direction
  T *gx[EDGES], *gw[EDGES], *gy[EDGES];  // [xt], [wt], [dim2, W] (lanes are summed at the end)
  const T* g;  // [ot]
  T* out;  // [ot]
  T *gm, *row;  // scratch: [max_matrix, W], [max_row]
  const T *ones, *zeros;  // [nv, W] weights of a path without weights, and their direction
  T* sink;  // [nv, W] where their gradient goes
  bool want_gy, stream_gw;  // stream_gw: gw is large and aligned
};

enum Pass { FWD, BWD, BWDBWD };
template <class T>
using PathKernel = void (*)(const Path&, const PlanColumns<T>&, const EdgeBlock<T>&);

#define EQTP_PATH_KERNEL                                \
  PathKernel<float> path_kernel_f32(Pass, const Path&); \
  PathKernel<double> path_kernel_f64(Pass, const Path&)
EQTP_DECLARE_LEVELS(EQTP_PATH_KERNEL)

}  // namespace eqtp
