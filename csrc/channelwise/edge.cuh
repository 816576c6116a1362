// What one edge adds to the output of a unit, and to its gradients: the formulas of path.h.
#pragma once
#include "channelwise/unit.cuh"

namespace eqtp {

// Adds it to acc [NO, CPL]. o: weights and y, of Operands or SharedOperands; x, tx [NX, CPL]
template <class P, class G, bool TANGENT, class O, class R>
__device__ __forceinline__ void multiply(const O& o, const R* x, const R* tx, R* acc) {
  constexpr int CPL = G::CPL;
  each<G::PATH, G::PATH_END>([&](auto N) {
    constexpr int p = N;
    constexpr int D1 = P::D1[p];
    R w[CPL], tw[CPL], y[P::DIM2], ty[P::DIM2];
    o.weights(N, w), o.columns(N, y);
    if constexpr (TANGENT) o.weights_along(N, tw), o.columns_along(N, ty);
    R wx[D1 * CPL], wt[TANGENT ? D1 * CPL : 1];  // w x, and its derivative
    EQTP_UNROLL
    for (int q = 0; q < D1 * CPL; ++q) {
      const int c = q % CPL, at_x = P::X[p] * CPL + q;
      wx[q] = w[c] * x[at_x];
      if constexpr (TANGENT) wt[q] = fused(w[c], tx[at_x], tw[c] * x[at_x]);
    }
    each<P::ENTRY[p], P::ENTRY[p + 1]>([&](auto E) {
      constexpr int e = E;
      const R m = entry<P, e>(y);
      R* const to = acc + (P::O[p] + P::K[e]) * CPL;
      const R* const from = (TANGENT ? wt : wx) + P::I[e] * CPL;
      EQTP_UNROLL
      for (int c = 0; c < CPL; ++c) to[c] = fused(m, from[c], to[c]);
      if constexpr (TANGENT) {
        const R tm = entry<P, e>(ty);
        EQTP_UNROLL
        for (int c = 0; c < CPL; ++c) to[c] = fused(tm, wx[P::I[e] * CPL + c], to[c]);
      }
    });
    if constexpr (O::SHARED) keep_order();
  });
}

// Sums of v[0 .. N) over LANES neighbours; each sum ends in one lane, v[0 ..] from column `first` to `last` (exclusive;
// empty in lanes that hold copies). Halves are exchanged: N - 1 shuffles and a few, instead of N times log2 LANES.
template <int N, int H, class R>
__device__ __forceinline__ void sum_lanes(R* v, int lane, int& first, int& last) {
  if constexpr (H > 0) {
    const bool upper = lane & H;
    if constexpr (N > 1) {
      constexpr int LOW = (N + 1) / 2;  // the lower half keeps LOW columns, the upper one the rest
      EQTP_UNROLL
      for (int q = 0; q < LOW; ++q) {
        const R other = LOW + q < N ? v[LOW + q] : R(0);
        v[q] = (upper ? other : v[q]) + __shfl_xor_sync(ALL_LANES, upper ? v[q] : other, H);
      }
      if (upper) first += LOW;
      else last = last < first + LOW ? last : first + LOW;
      sum_lanes<LOW, H / 2>(v, lane, first, last);
    } else {
      v[0] += __shfl_xor_sync(ALL_LANES, v[0], H);
      if (upper) last = first;
      sum_lanes<1, H / 2>(v, lane, first, last);
    }
  }
}
// Columns that a lane holds in the end
__device__ constexpr int sums_held(int n, int h) { return h == 0 ? n : sums_held((n + 1) / 2, h / 2); }

// The gradients that S of a path, and its derivative ts, gives: that of x [D1, CPL] is added to gx, that of w is sum
// [CPL]
template <int D1, int CPL, bool TANGENT, class R>
__device__ __forceinline__ void pull_back(const R* x, const R* tx, const R* w, const R* tw, const R* s, const R* ts,
                                          R* gx, R* sum) {
  clear<CPL>(sum);
  EQTP_UNROLL
  for (int q = 0; q < D1 * CPL; ++q) {
    const int c = q % CPL;
    if constexpr (TANGENT) {
      sum[c] = fused(ts[q], x[q], fused(s[q], tx[q], sum[c]));
      gx[q] = fused(w[c], ts[q], fused(tw[c], s[q], gx[q]));
    } else {
      sum[c] = fused(s[q], x[q], sum[c]);
      gx[q] = fused(w[c], s[q], gx[q]);
    }
  }
}

// One edge: gradients of x are added to gx; those of w go to memory; those of y are added to gy [DIM2], to be
// summed over lanes. o: weights and y; x, tx [NX, CPL]; g(k, v) reads component k of the unit, CPL numbers.
template <class P, class G, bool TANGENT, class T, class O, class R, class F>
__device__ __forceinline__ void differentiate(const O& o, const R* x, const R* tx, F&& g, R* gx, R* gy, T* gw,
                                              const Place& at) {
  constexpr int CPL = G::CPL;
  if constexpr (O::SHARED) gw = gw ? opaque(gw + at.u) : gw;
  each<G::PATH, G::PATH_END>([&](auto N) {
    constexpr int p = N, D1 = P::D1[p];
    R w[CPL], tw[CPL], y[P::DIM2], ty[P::DIM2];
    o.weights(N, w), o.columns(N, y);
    if constexpr (TANGENT) o.weights_along(N, tw), o.columns_along(N, ty);
    R s[D1 * CPL], ts[TANGENT ? D1 * CPL : 1],
        wx[D1 * CPL];  // S[i] = sum_k M[k, i] g[k], its derivative; w x or its derivative
    EQTP_UNROLL
    for (int q = 0; q < D1 * CPL; ++q) {
      const int c = q % CPL, at_x = P::X[p] * CPL + q;
      s[q] = 0;
      if constexpr (TANGENT) ts[q] = 0, wx[q] = fused(w[c], tx[at_x], tw[c] * x[at_x]);
      else wx[q] = w[c] * x[at_x];
    }
    each<P::ENTRY[p], P::ENTRY[p + 1]>([&](auto E) {
      constexpr int e = E;
      R gk[CPL];
      g(Int<P::O[p] + P::K[e]>{}, gk);
      const R m = entry<P, e>(y);
      R gm = 0;  // gradient of M[k, i]
      EQTP_UNROLL
      for (int c = 0; c < CPL; ++c) {
        const int q = P::I[e] * CPL + c;
        s[q] = fused(m, gk[c], s[q]);
        gm = fused(gk[c], wx[q], gm);
      }
      if constexpr (TANGENT) {
        const R tm = entry<P, e>(ty);
        EQTP_UNROLL
        for (int c = 0; c < CPL; ++c) ts[P::I[e] * CPL + c] = fused(tm, gk[c], ts[P::I[e] * CPL + c]);
      }
      each<P::TERM[e], P::TERM[e + 1]>([&](auto K) {
        constexpr int t = K, j = P::J[t];
        constexpr R c = R(P::C[t]);
        gy[j] = fused(c, gm, gy[j]);
      });
    });
    R sum[CPL];  // gradient of w
    constexpr int first = P::X[p] * CPL;
    pull_back<D1, CPL, TANGENT>(x + first, tx + first, w, tw, s, ts, gx + first, sum);
    if constexpr (P::W[p] >= 0)
      if (gw && at.active) write_pack<CPL>(gw + Int<P::W[p]>::value + (O::SHARED ? 0 : at.u), sum);
    if constexpr (O::SHARED) keep_order();
  });
}

// Sums of gy [DIM2] over lanes -> to [DIM2], where there is an edge
template <class P, class G, class R>
__device__ __forceinline__ void write_part(R* gy, R* to, bool some, const Place& at) {
  int first = 0, last = P::DIM2;
  sum_lanes<P::DIM2, G::LANES / 2>(gy, at.lane, first, last);
  constexpr int HELD = sums_held(P::DIM2, G::LANES / 2);
  EQTP_UNROLL
  for (int q = 0; q < HELD; ++q)
    if (some && first + q < last) to[first + q] = gy[q];
}

}  // namespace eqtp
