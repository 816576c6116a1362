// The channelwise tensor product convolution on the GPU, specialised at run time: the plan is a struct P of
// compile-time tables (unit.cuh; eqtp/backends/jit/channelwise_tables.py writes it), so loops over paths and
// coefficients unroll, indices are registers and zeros vanish. Modes: GRAPH, edges sorted (CSR); ROWS, one edge per
// row: the plain product; EDGES, edges in any order, whose sums are atomic: only when asked for.
//
// Formulas: path.h. Work: a *unit* is a set of paths that share blocks of x or of the output (usually all paths of
// one block of x), for a chunk of channels. One block of threads does one unit of one row: LANES threads hold
// channels (CPL each), and WORKERS = THREADS / LANES of them share the edges of the row, whose sums meet in shared
// memory at the end, in a fixed order: no atomics, the same bits every time. A row of many edges is taken in blocks
// (common/long_sums.cuh).
//
//   fwd  walks the edges into a destination; the output row stays in registers.
//   bwd  walks the edges out of a source (the transposed graph); x and the gradient of x stay in registers, the
//        gradient of w is written per edge, that of y is summed over lanes by shuffles and over units by
//        sum_units_kernel.
//   With TANGENT, both are differentiated along (tx, ty, tw): together they are the second order.
//
// Floor: the weights are read once (bwd: and their gradient written once); rows of x and of g are gathered from the
// second-level cache, component by component ("planar" rows [d, mul], made once per node by planar_kernel), so that
// every load of a warp is whole lines. The operands of the next edge are on their way while this one's are used
// (AHEAD), unless registers are short.
#pragma once
#include "channelwise/unit.cuh"

namespace eqtp {

// ----------------------------------------------------------------------------------------------------------------
//   forward
template <class P, class G, bool TANGENT, class R>
struct Operands {  // of an edge; the second half is the direction
  R x[G::NX * G::CPL], w[G::NP * G::CPL], y[P::DIM2], tx[TANGENT ? G::NX * G::CPL : 1],
      tw[TANGENT ? G::NP * G::CPL : 1], ty[TANGENT ? P::DIM2 : 1];
};

template <class P, class G, bool TANGENT, class R>
__device__ __forceinline__ void multiply(const Operands<P, G, TANGENT, R>& o, R* acc) {
  constexpr int CPL = G::CPL;
  each<G::PATH, G::PATH_END>([&](auto N) {
    constexpr int p = N;
    constexpr int D1 = P::D1[p], at = (p - G::PATH) * CPL;
    R wx[D1 * CPL], wt[TANGENT ? D1 * CPL : 1];  // w x, and its derivative
    EQTP_UNROLL
    for (int i = 0; i < D1; ++i) {
      EQTP_UNROLL
      for (int c = 0; c < CPL; ++c) {
        const int q = (P::X[p] + i) * CPL + c;
        wx[i * CPL + c] = o.w[at + c] * o.x[q];
        if constexpr (TANGENT) wt[i * CPL + c] = fused(o.w[at + c], o.tx[q], o.tw[at + c] * o.x[q]);
      }
    }
    each<P::ENTRY[p], P::ENTRY[p + 1]>([&](auto N) {
      constexpr int e = N;
      const R m = entry<P, e>(o.y);
      R* const to = acc + (P::O[p] + P::K[e]) * CPL;
      const R* const from = (TANGENT ? wt : wx) + P::I[e] * CPL;
      EQTP_UNROLL
      for (int c = 0; c < CPL; ++c) to[c] = fused(m, from[c], to[c]);
      if constexpr (TANGENT) {
        const R tm = entry<P, e>(o.ty);
        EQTP_UNROLL
        for (int c = 0; c < CPL; ++c) to[c] = fused(tm, wx[P::I[e] * CPL + c], to[c]);
      }
    });
  });
}

// A tensor [rows, .] and the distance of its rows
template <class T>
struct StridedRows {
  const T* p;
  Index stride;
  __device__ __forceinline__ const T* row(Index n) const { return p + n * stride; }
};
// What conv_fwd_kernel and conv_bwd_kernel take, by value: CONV_PARAMS of eqtp/backends/jit/channelwise.py has the same
// fields. A null pointer: absent, or not wanted.
template <class T>
struct ConvParams {
  StridedRows<T> x, y, w, g;  // [num_src, DIM1], [e, DIM2], [e, NUMEL], [num_dst, DIM3]
  StridedRows<T> tx, ty, tw;  // the direction
  // fwd: src [e], and the CSR by destination; bwd: dst [e], and the CSR by source. EDGES: ptr holds the row of the sums
  const Index *neighbour, *ptr, *order;  // [e], [rows + 1], [e]
  T *out, *gx, *gw;  // [num_dst, DIM3], [num_src, DIM1], [e, NUMEL]
  Real<T>* gy;  // [e, blocks of units, DIM2]: parts of the gradient of y
  Index rows;  // that are summed; ROWS, EDGES: edges
};

// Sums of the worker's edges of a row: order[t] for t = begin, begin + WORKERS, .. < end. fetch(e, s, operands): edge e
// out of row s
template <class P, class G, bool TANGENT, class R, class F>
__device__ __forceinline__ void sum_edges(const Index* src, const Index* order, Index begin, Index end, F&& fetch,
                                          R* acc) {
  Index t = begin, e = 0, s = 0;
  Operands<P, G, TANGENT, R> now, soon;
  const auto find = [&](Index t) {
    if (t < end) e = order[t], s = src[e];
  };
  find(t);
  if constexpr (G::AHEAD) {
    if (t < end) fetch(e, s, now);
    find(t + G::WORKERS);
  }
  EQTP_LOOP
  for (; t < end; t += G::WORKERS) {
    if constexpr (G::AHEAD) {
      if (t + G::WORKERS < end) fetch(e, s, soon);
      find(t + 2 * G::WORKERS);
      multiply(now, acc);
      now = soon;
    } else {
      fetch(e, s, now);
      find(t + G::WORKERS);
      multiply(now, acc);
    }
  }
}

// Block `turn` of the sum of a row; returns whether there are more
template <class P, int U, int MODE, bool TANGENT, class T>
__device__ __forceinline__ bool fwd_unit(const ConvParams<T>& a, Index row, int turn, int chunk, Real<T>* tile,
                                         RowSums<P, MODE, Real<T>>& sums) {
  using G = Unit<P, U>;
  using R = Real<T>;
  const Place at = place<G>(chunk);
  R acc[G::NO * G::CPL];
  EQTP_UNROLL
  for (int q = 0; q < G::NO * G::CPL; ++q) acc[q] = 0;
  const auto fetch = [&](Index e, Index s, Operands<P, G, TANGENT, R>& o) {
    read_in<P, G, MODE == GRAPH>(a.x.row(s), at, o.x);
    read_weights<P, G>(a.w.row(e), at, R(1), o.w);
    read_y<P>(a.y.row(e), o.y);
    if constexpr (TANGENT) {
      read_in<P, G, MODE == GRAPH>(a.tx.row(s), at, o.tx);
      read_weights<P, G>(a.tw.row(e), at, R(0), o.tw);
      read_y<P>(a.ty.row(e), o.ty);
    }
  };
  bool valid = true;
  Places edges{0, 0, {true, true}};
  if constexpr (MODE != GRAPH) {
    const Index e = row * G::WORKERS + at.worker;
    valid = e < a.rows, row = e;
    Operands<P, G, TANGENT, R> o;
    if (valid) {
      fetch(e, MODE == EDGES ? a.neighbour[e] : e, o), multiply(o, acc);
      if constexpr (MODE == EDGES) row = a.ptr[e];
    }
  } else {
    edges = places_of<R>(a.ptr, row, turn, G::WORKERS);
    sum_edges<P, G, TANGENT>(a.neighbour, a.order, edges.begin + at.worker, edges.end, fetch, acc);
  }
  each<G::OUT, G::OUT_END>([&](auto Q) {
    constexpr int q = Q;
    write_block<P, G, P::OUT_D[q], MODE, sums_before<G>(P::OUT_D, G::OUT, q)>(
        acc + Int<P::OUT_AT[q]>::value * G::CPL, a.out + row * P::DIM3 + Int<P::OUT_OFFSET[q]>::value, valid, at, tile,
        sums, edges.block);
  });
  return !edges.block.last;
}

// ----------------------------------------------------------------------------------------------------------------
//   backward
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

// One edge: gradients of x are added to gx; those of w go to memory; those of y are left in gy [DIM2], to be summed
// over lanes.
template <class P, class G, bool TANGENT, class T, class R>
__device__ __forceinline__ void differentiate(const R* x, const R* tx, const R* g, const R* w, const R* tw, const R* y,
                                              const R* ty, R* gx, R* gy, T* gw, const Place& at) {
  constexpr int CPL = G::CPL;
  EQTP_UNROLL
  for (int j = 0; j < P::DIM2; ++j) gy[j] = 0;
  each<G::PATH, G::PATH_END>([&](auto N) {
    constexpr int p = N, D1 = P::D1[p], first = (p - G::PATH) * CPL;
    R s[D1 * CPL], ts[TANGENT ? D1 * CPL : 1],
        wx[D1 * CPL];  // S[i] = sum_k M[k, i] g[k], its derivative; w x or its derivative
    EQTP_UNROLL
    for (int q = 0; q < D1 * CPL; ++q) {
      const int c = q % CPL, at_x = P::X[p] * CPL + q;
      s[q] = 0;
      if constexpr (TANGENT) ts[q] = 0, wx[q] = fused(w[first + c], tx[at_x], tw[first + c] * x[at_x]);
      else wx[q] = w[first + c] * x[at_x];
    }
    each<P::ENTRY[p], P::ENTRY[p + 1]>([&](auto E) {
      constexpr int e = E;
      const R* const gk = g + (P::O[p] + P::K[e]) * CPL;
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
    EQTP_UNROLL
    for (int c = 0; c < CPL; ++c) sum[c] = 0;
    EQTP_UNROLL
    for (int q = 0; q < D1 * CPL; ++q) {
      const int c = q % CPL, at_x = P::X[p] * CPL + q;
      if constexpr (TANGENT) {
        sum[c] = fused(ts[q], x[at_x], fused(s[q], tx[at_x], sum[c]));
        gx[at_x] = fused(w[first + c], ts[q], fused(tw[first + c], s[q], gx[at_x]));
      } else {
        sum[c] = fused(s[q], x[at_x], sum[c]);
        gx[at_x] = fused(w[first + c], s[q], gx[at_x]);
      }
    }
    if constexpr (P::W[p] >= 0)
      if (gw && at.active) write_pack<CPL>(gw + Int<P::W[p]>::value + at.u, sum);
  });
}

// The gradients that edge e, into row n, gives; x and its direction are in registers already
template <class P, class G, int MODE, bool TANGENT, class T, class R>
__device__ __forceinline__ void differentiate_edge(const ConvParams<T>& a, Index e, Index n, const R* x, const R* tx,
                                                   R* gx, R* gy, const Place& at) {
  R g[G::NO * G::CPL], w[G::NP * G::CPL], tw[TANGENT ? G::NP * G::CPL : 1], y[P::DIM2], ty[TANGENT ? P::DIM2 : 1];
  read_y<P>(a.y.row(e), y);
  read_weights<P, G>(a.w.row(e), at, R(1), w);
  if constexpr (TANGENT) {
    read_y<P>(a.ty.row(e), ty);
    read_weights<P, G>(a.tw.row(e), at, R(0), tw);
  }
  read_out<P, G, MODE == GRAPH>(a.g.row(n), at, g);
  differentiate<P, G, TANGENT, T>(x, tx, g, w, tw, y, ty, gx, gy, a.gw ? a.gw + e * P::NUMEL : nullptr, at);
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

// As fwd_unit
template <class P, int U, int MODE, bool TANGENT, class T>
__device__ __forceinline__ bool bwd_unit(const ConvParams<T>& a, Index row, int turn, int chunk, int block, int blocks,
                                         Real<T>* tile, RowSums<P, MODE, Real<T>>& sums) {
  using G = Unit<P, U>;
  using R = Real<T>;
  const Place at = place<G>(chunk);
  // x of the row, its direction, its gradient
  R here[G::NX * G::CPL], along[TANGENT ? G::NX * G::CPL : 1], gx[G::NX * G::CPL];
  bool valid = true;
  Places edges{0, 1, {true, true}};
  Index edge = 0;
  if constexpr (MODE != GRAPH) {
    edge = row * G::WORKERS + at.worker;
    valid = edge < a.rows, row = edge;
    if constexpr (MODE == EDGES)
      if (valid) row = a.ptr[edge];
  } else {
    edges = places_of<R>(a.ptr, row, turn, G::WORKERS);
  }
  EQTP_UNROLL
  for (int q = 0; q < G::NX * G::CPL; ++q) {
    here[q] = gx[q] = 0;
    if constexpr (TANGENT) along[q] = 0;
  }
  if (valid && at.active) {  // zeros elsewhere: nothing is added to the gradient of y
    read_in<P, G, false>(a.x.row(row), at, here);
    if constexpr (TANGENT) read_in<P, G, false>(a.tx.row(row), at, along);
  }
  EQTP_LOOP  // all workers go round equally often: the lanes of a warp sum together
  for (Index t = edges.begin; t < edges.end; t += MODE == GRAPH ? G::WORKERS : 1) {
    Index e = edge, n = edge;
    bool some = valid;
    if constexpr (MODE == EDGES)
      if (some) n = a.neighbour[e];
    if constexpr (MODE == GRAPH) {
      some = t + at.worker < edges.end;
      if (some) e = a.order[t + at.worker], n = a.neighbour[e];
    }
    R gy[P::DIM2];
    EQTP_UNROLL
    for (int j = 0; j < P::DIM2; ++j) gy[j] = 0;
    if (some) differentiate_edge<P, G, MODE, TANGENT>(a, e, n, here, along, gx, gy, at);
    if (a.gy) write_part<P, G>(gy, a.gy + (e * blocks + block) * P::DIM2, some, at);
  }
  if (a.gx)
    each<G::IN, G::IN_END>([&](auto Q) {
      constexpr int q = Q;
      write_block<P, G, P::IN_D[q], MODE, sums_before<G>(P::IN_D, G::IN, q)>(
          gx + Int<P::IN_AT[q]>::value * G::CPL, a.gx + row * P::DIM1 + Int<P::IN_OFFSET[q]>::value, valid, at, tile,
          sums, edges.block);
    });
  return !edges.block.last;
}

// ----------------------------------------------------------------------------------------------------------------
//   kernels
// Calls f(unit, row, turn, chunk, block of units) for all blocks of work: rows (of edges, unless GRAPH: groups of
// WORKERS) times the chunks of all units; turn is 0, and one more as long as f returns true. A loop of its own around
// the edges would take registers.
template <class P, int MODE, class F>
__device__ __forceinline__ void all_units(Index rows, F&& f) {
  constexpr int BLOCKS = first_block<P, P::UNITS>();
  bool some = true;
  int turn = 0;
  EQTP_LOOP
  for (Index b = blockIdx.x; some;) {
    const Index row = b / BLOCKS;
    const int which = int(b % BLOCKS);
    bool more = false;
    some = false;
    each<0, P::UNITS>([&](auto N) {
      constexpr int u = N, first = first_block<P, u>(), groups = MODE != GRAPH ? Unit<P, u>::WORKERS : 1;
      if (row * groups >= rows) return;
      some = true;
      if (which >= first && which < first + Unit<P, u>::CHUNKS) more = f(N, row, turn, which - first, which);
    });
    turn = more ? turn + 1 : 0;
    if (!more) b += gridDim.x;
  }
}

// out, from x and tx, which are planar in GRAPH. EDGES: out is zero at first
template <class P, class T, int MODE, bool TANGENT>
__global__ void __launch_bounds__(THREADS, P::RESIDENT) conv_fwd_kernel(const __grid_constant__ ConvParams<T> a) {
  __shared__ Real<T> tile[THREADS * numbers_per_thread<P>()];
  RowSums<P, MODE, Real<T>> sums;
  all_units<P, MODE>(a.rows, [&](auto u, Index row, int turn, int chunk, int) {
    return fwd_unit<P, decltype(u)::value, MODE, TANGENT>(a, row, turn, chunk, tile, sums);
  });
}

// gx, gy, gw, from g, which is planar in GRAPH; x and tx never are. EDGES: gx is zero at first
template <class P, class T, int MODE, bool TANGENT>
__global__ void __launch_bounds__(THREADS, P::RESIDENT) conv_bwd_kernel(const __grid_constant__ ConvParams<T> a) {
  __shared__ Real<T> tile[THREADS * numbers_per_thread<P>()];
  RowSums<P, MODE, Real<T>> sums;
  constexpr int BLOCKS = first_block<P, P::UNITS>();
  all_units<P, MODE>(a.rows, [&](auto u, Index row, int turn, int chunk, int block) {
    return bwd_unit<P, decltype(u)::value, MODE, TANGENT>(a, row, turn, chunk, block, BLOCKS, tile, sums);
  });
}

// gy [n, DIM] = sums over `blocks` of parts [n, blocks, DIM], in order
template <class T, int BLOCKS, int DIM>
__global__ void __launch_bounds__(THREADS) sum_units_kernel(const Real<T>* parts, T* gy, Index n) {
  for (Index q = Index(blockIdx.x) * THREADS + threadIdx.x; q < n * DIM; q += Index(gridDim.x) * THREADS) {
    const Real<T>* const p = parts + q / DIM * (BLOCKS * DIM) + q % DIM;
    Real<T> s = p[0];
    EQTP_UNROLL
    for (int b = 1; b < BLOCKS; ++b) s += p[b * DIM];
    write(gy + q, s);
  }
}

// Columns of rows [dim] in another order: planar rows, [d, mul] per block, from rows [mul, d]
template <class T>
__global__ void __launch_bounds__(THREADS)
    planar_kernel(const T* from, Index stride, const Index* column, T* to, Index dim, Index rows) {
  for (Index row = blockIdx.x; row < rows; row += gridDim.x)
    for (Index q = threadIdx.x; q < dim; q += THREADS) to[row * dim + q] = from[row * stride + column[q]];
}

}  // namespace eqtp
