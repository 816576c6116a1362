// The channelwise tensor product convolution on the GPU, specialised at run time: the plan is a struct P of
// compile-time tables (unit.cuh; eqtp/backends/jit/channelwise_tables.py writes it), so loops over paths and
// coefficients unroll, indices are registers and zeros vanish. Modes: GRAPH, edges sorted (CSR); ROWS, one edge per
// row: the plain product; EDGES, edges in any order, whose sums are atomic: only when asked for.
//
// Formulas: path.h. Work: a *unit* is a set of paths that share blocks of x or of the output (usually all paths of
// one block of x), for a chunk of channels. One block of threads does one unit of one row: LANES threads hold
// channels (CPL each), and WORKERS = THREADS / LANES of them share the edges of the row, whose sums meet in shared
// memory at the end, in a fixed order: no atomics, the same bits every time. A row of many edges is summed in blocks
// (common/long_sums.cuh). The operands of the next edges are on their way into shared memory meanwhile (ring.cuh).
//
//   fwd             walks the edges into a destination: x is gathered, the output row stays in registers.
//   bwd by source   walks the edges out of a source (the transposed graph): g is gathered, x and the gradient of x stay
//                   in registers.
//   by destination  walks the edges into a destination: g stays in shared memory, x is gathered, and the gradient of x
//                   is written per edge, to be summed by sum_sources_kernel: cheaper where rows of g are much longer
//                   than those of x.
//   Both backwards write the gradient of w per edge, and sum that of y over lanes by shuffles and over units by
//   sum_units_kernel. With TANGENT, fwd and bwd are differentiated along (tx, ty, tw): together they are the second
//   order, which by destination is one walk.
//
// Floor: the weights are read once (bwd: and their gradient written once); rows of x and of g are gathered from the
// second-level cache, component by component ("planar" rows [d, mul], made once per node by planar_kernel), so that
// every copy of a warp is whole lines.
#pragma once
#include "channelwise/edge.cuh"
#include "channelwise/ring.cuh"

namespace eqtp {

// ----------------------------------------------------------------------------------------------------------------
//   a unit of a row, with a graph
// Sums of blocks of edges, of one worker each, -> blocks of a row of the output (OUT) or of the gradient of x
template <class P, class G, bool OUT, class T>
__device__ __forceinline__ void fold_blocks(Real<T>* v, T* row, const Place& at, Real<T>* tile,
                                            RowSums<P, Real<T>>& sums, BlockOfSum block) {
  using B = Blocks<P, G, OUT>;
  each<B::FIRST, B::LAST>([&](auto Q) {
    constexpr int q = Q, first = sums_before<B, G>(q);
    write_block<P, G, B::dim(q), first>(v + Int<B::at(q)>::value * G::CPL, row + Int<B::offset(q)>::value, at, tile,
                                        sums, block);
  });
}

template <class P, int U, bool TANGENT, class T>
__device__ __forceinline__ void fwd_row(const ConvParams<T>& a, Index row, int chunk, Real<T>* tile,
                                        unsigned char* rings, RowSums<P, Real<T>>& sums) {
  using G = Unit<P, U>;
  using R = Real<T>;
  const Place at = place<G>(chunk);
  R acc[G::NO * G::CPL];
  clear<G::NO * G::CPL>(acc);
  bool first = true;
  walk_edges<P, G, GATHER_X, TANGENT>(
      a, a.ptr[row], a.ptr[row + 1], at, rings,
      [&](Index, bool some, const auto& o) {
        if (!some) return;
        R x[G::NX * G::CPL], tx[TANGENT ? G::NX * G::CPL : 1];
        o.read_x(x);
        if constexpr (TANGENT) o.read_x_along(tx);
        multiply<P, G, TANGENT>(o, x, tx, acc);
      },
      [&](bool last) {
        fold_blocks<P, G, true>(acc, a.out + row * P::DIM3, at, tile, sums, {first, last});
        if (!last) clear<G::NO * G::CPL>(acc), first = false;
      });
}

template <class P, int U, bool TANGENT, class T>
__device__ __forceinline__ void bwd_row(const ConvParams<T>& a, Index row, int chunk, int block, int blocks,
                                        Real<T>* tile, unsigned char* rings, RowSums<P, Real<T>>& sums) {
  using G = Unit<P, U>;
  using R = Real<T>;
  constexpr int N = G::NX * G::CPL;
  const Place at = place<G>(chunk);
  R x[N], tx[TANGENT ? N : 1], gx[N];
  clear<N>(x), clear<N>(gx);
  if constexpr (TANGENT) clear<N>(tx);
  if (at.active) {  // zeros elsewhere: nothing is added to the gradient of y
    read_row<P, G, false>(a.x.row(row), at, x);
    if constexpr (TANGENT) read_row<P, G, false>(a.tx.row(row), at, tx);
  }
  bool first = true;
  walk_edges<P, G, GATHER_G, TANGENT>(
      a, a.ptr[row], a.ptr[row + 1], at, rings,
      [&](Index e, bool some, const auto& o) {
        R gy[P::DIM2];
        clear<P::DIM2>(gy);
        if (some)
          differentiate<P, G, TANGENT, T>(
              o, x, tx, [&](int k, R* v) { o.row(k, v); }, gx, gy, a.gw ? a.gw + e * P::NUMEL : nullptr, at);
        if (a.gy) write_part<P, G>(gy, a.gy + (e * blocks + block) * P::DIM2, some, at);
      },
      [&](bool last) {
        if (a.gx) fold_blocks<P, G, false>(gx, a.gx + row * P::DIM1, at, tile, sums, {first, last});
        if (!last) clear<N>(gx), first = false;
      });
}

// Blocks of a row of the output, [mul, d], -> [NO, CHUNK] in shared memory, zeros behind the last channel
template <class P, class G, class T, class R>
__device__ __forceinline__ void share_out(const T* row, const Place& at, R* to) {
  using B = Blocks<P, G, true>;
  each<B::FIRST, B::LAST>([&](auto Q) {
    constexpr int q = Q, d = B::dim(q), first = B::at(q);
    const int behind = (G::MUL - at.chunk * G::CHUNK) * d;
    const T* const from = row + Int<B::offset(q)>::value + Index(at.chunk) * (G::CHUNK * d);
    EQTP_UNROLL
    for (int n = int(threadIdx.x); n < G::CHUNK * d; n += THREADS)
      to[(first + n % d) * G::CHUNK + n / d] = n < behind ? read(from[n]) : R(0);
  });
}

// OUT: the output too
template <class P, int U, bool TANGENT, bool OUT, class T>
__device__ __forceinline__ void bwd_row_by_destination(const ConvParams<T>& a, Index row, int chunk, int block,
                                                       int blocks, Real<T>* tile, unsigned char* rings, Real<T>* g,
                                                       RowSums<P, Real<T>>& sums) {
  using G = Unit<P, U>;
  using R = Real<T>;
  constexpr int N = G::NX * G::CPL, SUMS = OUT ? G::NO * G::CPL : 1;
  const Place at = place<G>(chunk);
  share_out<P, G>(a.g.row(row), at, g);
  __syncthreads();
  R acc[SUMS];
  clear<SUMS>(acc);
  bool first = true;
  walk_edges<P, G, GATHER_X, TANGENT>(
      a, a.ptr[row], a.ptr[row + 1], at, rings,
      [&](Index e, bool some, const auto& o) {
        R gy[P::DIM2];
        clear<P::DIM2>(gy);
        if (some) {
          R x[N], tx[TANGENT ? N : 1], gx[N];
          o.read_x(x), clear<N>(gx);
          if constexpr (TANGENT) o.read_x_along(tx);
          if constexpr (OUT) multiply<P, G, TANGENT>(o, x, tx, acc);
          differentiate<P, G, TANGENT, T>(
              o, x, tx, [&](int k, R* v) { read_pack<G::CPL>(g + k * G::CHUNK + at.lane * G::CPL, v); }, gx, gy,
              a.gw ? a.gw + e * P::NUMEL : nullptr, at);
          if (a.gxe && at.active) write_planar<P, G>(gx, a.gxe + e * P::DIM1, at);
        }
        if (a.gy) write_part<P, G>(gy, a.gy + (e * blocks + block) * P::DIM2, some, at);
      },
      [&](bool last) {
        if constexpr (OUT) {
          fold_blocks<P, G, true>(acc, a.out + row * P::DIM3, at, tile, sums, {first, last});
          if (!last) clear<SUMS>(acc), first = false;
        }
      });
  __syncthreads();  // before g is overwritten
}

// ----------------------------------------------------------------------------------------------------------------
//   a unit of a few edges of their own: ROWS, EDGES
// The edge of a worker, the rows of x and of the output that it joins, and its operands but x and g
template <class P, class G, int MODE, bool TANGENT, class T>
struct OwnEdge {
  bool valid;
  Index e, read, add;  // the row that is read, and the one that is added to
  Operands<P, G, TANGENT, Real<T>> o;
  __device__ __forceinline__ OwnEdge(const ConvParams<T>& a, Index group, const Place& at)
      : valid(group * G::WORKERS + at.worker < a.rows), e(group * G::WORKERS + at.worker), read(e), add(e) {
    if (!valid) return;
    if constexpr (MODE == EDGES) read = a.neighbour[e], add = a.ptr[e];
    read_weights<P, G>(a.w.row(e), at, Real<T>(1), o.w), read_y<P>(a.y.row(e), o.y);
    if constexpr (TANGENT) read_weights<P, G>(a.tw.row(e), at, Real<T>(0), o.tw), read_y<P>(a.ty.row(e), o.ty);
  }
};

// Registers of all blocks -> a row of the output (OUT) or of the gradient of x for each worker
template <class P, class G, bool OUT, int MODE, class T>
__device__ __forceinline__ void write_own(const Real<T>* v, T* row, bool valid, const Place& at, Real<T>* tile) {
  using B = Blocks<P, G, OUT>;
  each<B::FIRST, B::LAST>([&](auto Q) {
    constexpr int q = Q;
    write_rows<P, G, B::dim(q), MODE>(v + Int<B::at(q)>::value * G::CPL, row + Int<B::offset(q)>::value, valid, at,
                                      tile);
  });
}

template <class P, int U, int MODE, bool TANGENT, class T>
__device__ __forceinline__ void fwd_edges(const ConvParams<T>& a, Index group, int chunk, Real<T>* tile) {
  using G = Unit<P, U>;
  using R = Real<T>;
  const Place at = place<G>(chunk);
  OwnEdge<P, G, MODE, TANGENT, T> edge(a, group, at);
  R acc[G::NO * G::CPL];
  clear<G::NO * G::CPL>(acc);
  if (edge.valid) {
    auto& o = edge.o;
    read_row<P, G, false>(a.x.row(edge.read), at, o.x);
    if constexpr (TANGENT) read_row<P, G, false>(a.tx.row(edge.read), at, o.tx);
    multiply<P, G, TANGENT>(o, o.x, o.tx, acc);
  }
  write_own<P, G, true, MODE>(acc, a.out + edge.add * P::DIM3, edge.valid, at, tile);
}

template <class P, int U, int MODE, bool TANGENT, class T>
__device__ __forceinline__ void bwd_edges(const ConvParams<T>& a, Index group, int chunk, int block, int blocks,
                                          Real<T>* tile) {
  using G = Unit<P, U>;
  using R = Real<T>;
  constexpr int N = G::NX * G::CPL;
  const Place at = place<G>(chunk);
  OwnEdge<P, G, MODE, TANGENT, T> edge(a, group, at);
  R gx[N], gy[P::DIM2], g[G::NO * G::CPL];
  clear<N>(gx), clear<P::DIM2>(gy);
  if (edge.valid) {
    auto& o = edge.o;
    clear<N>(o.x);
    if constexpr (TANGENT) clear<N>(o.tx);
    if (at.active) {  // zeros elsewhere: nothing is added to the gradient of y
      read_row<P, G, false>(a.x.row(edge.add), at, o.x);
      if constexpr (TANGENT) read_row<P, G, false>(a.tx.row(edge.add), at, o.tx);
    }
    read_row<P, G, true>(a.g.row(edge.read), at, g);
    differentiate<P, G, TANGENT, T>(
        o, o.x, o.tx,
        [&](int k, R* v) {
          EQTP_UNROLL
          for (int c = 0; c < G::CPL; ++c) v[c] = g[k * G::CPL + c];
        },
        gx, gy, a.gw ? a.gw + edge.e * P::NUMEL : nullptr, at);
  }
  if (a.gy) write_part<P, G>(gy, a.gy + (edge.e * blocks + block) * P::DIM2, edge.valid, at);
  if (a.gx) write_own<P, G, false, MODE>(gx, a.gx + edge.add * P::DIM1, edge.valid, at, tile);
}

// ----------------------------------------------------------------------------------------------------------------
//   kernels
// Calls f(unit, row, chunk, block of units) for all blocks of work: rows (of edges, unless GRAPH: groups of WORKERS)
// along x, chunks of all units along y. So one unit follows the other: the instructions of one are in use at a time,
// and the columns of the rows that are gathered.
template <class P, int MODE, class F>
__device__ __forceinline__ void all_units(Index rows, F&& f) {
  const int which = int(blockIdx.y);
  each<0, P::UNITS>([&](auto N) {
    constexpr int u = N, first = first_block<P, u>(), groups = MODE != GRAPH ? Unit<P, u>::WORKERS : 1;
    if (which < first || which >= first + Unit<P, u>::CHUNKS) return;
    EQTP_LOOP
    for (Index row = blockIdx.x; row * groups < rows; row += gridDim.x) f(N, row, which - first, which);
  });
}

// out, from x and tx, which are planar in GRAPH. EDGES: out is zero at first
template <class P, class T, int MODE, bool TANGENT>
__global__ void __launch_bounds__(THREADS, P::RESIDENT) conv_fwd_kernel(const __grid_constant__ ConvParams<T> a) {
  __shared__ Real<T> tile[THREADS * numbers_per_thread<P>()];
  EQTP_DYN_SHARED(unsigned char, rings);
  RowSums<P, Real<T>> sums;
  all_units<P, MODE>(a.rows, [&](auto u, Index row, int chunk, int) {
    if constexpr (MODE == GRAPH) fwd_row<P, decltype(u)::value, TANGENT>(a, row, chunk, tile, rings, sums);
    else fwd_edges<P, decltype(u)::value, MODE, TANGENT>(a, row, chunk, tile);
  });
}

// gx, gy, gw, from g, which is planar in GRAPH; x and tx never are. EDGES: gx is zero at first
template <class P, class T, int MODE, bool TANGENT>
__global__ void __launch_bounds__(THREADS, P::RESIDENT) conv_bwd_kernel(const __grid_constant__ ConvParams<T> a) {
  __shared__ Real<T> tile[THREADS * numbers_per_thread<P>()];
  EQTP_DYN_SHARED(unsigned char, rings);
  RowSums<P, Real<T>> sums;
  constexpr int BLOCKS = first_block<P, P::UNITS>();
  all_units<P, MODE>(a.rows, [&](auto u, Index row, int chunk, int block) {
    if constexpr (MODE == GRAPH)
      bwd_row<P, decltype(u)::value, TANGENT>(a, row, chunk, block, BLOCKS, tile, rings, sums);
    else bwd_edges<P, decltype(u)::value, MODE, TANGENT>(a, row, chunk, block, BLOCKS, tile);
  });
}

// gw, gy and, edge by edge, the gradient of x, from g; x and tx are planar. OUT: and out
template <class P, class T, bool TANGENT, bool OUT>
__global__ void __launch_bounds__(THREADS, P::RESIDENT)
    conv_bwd_by_destination_kernel(const __grid_constant__ ConvParams<T> a) {
  __shared__ Real<T> tile[OUT ? THREADS * numbers_per_thread<P>() : 1];
  EQTP_DYN_SHARED(unsigned char, rings);
  auto* const g = reinterpret_cast<Real<T>*>(rings + P::RINGS);
  RowSums<P, Real<T>> sums;
  constexpr int BLOCKS = first_block<P, P::UNITS>();
  all_units<P, GRAPH>(a.rows, [&](auto u, Index row, int chunk, int block) {
    bwd_row_by_destination<P, decltype(u)::value, TANGENT, OUT>(a, row, chunk, block, BLOCKS, tile, rings, g, sums);
  });
}

// gx [rows, DIM] = sums over the edges out of each source of parts [e, DIM], whose columns are planar; column: of gx
template <class T, int DIM, int VEC>
__global__ void __launch_bounds__(THREADS)
    sum_sources_kernel(const Real<T>* parts, const Index* ptr, const Index* order, const Index* column, T* gx,
                       Index rows) {
  using R = Real<T>;
  constexpr int PACKS = DIM / VEC, LANES = PACKS > 64 ? 128 : PACKS > 32 ? 64 : 32, WORKERS = THREADS / LANES;
  const int lane = int(threadIdx.x) % LANES, worker = int(threadIdx.x) / LANES;
  for (Index row = Index(blockIdx.x) * WORKERS + worker; row < rows; row += Index(gridDim.x) * WORKERS)
    for (int q = lane * VEC; q < DIM; q += LANES * VEC) {
      R sum[VEC];
      EQTP_UNROLL
      for (int c = 0; c < VEC; ++c) sum[c] = 0;
      sum_blocks<R, VEC>(sum, ptr[row], ptr[row + 1], 1, [&](Index t, Index end) {
        EQTP_UNROLL_8
        for (; t < end; ++t) {
          R v[VEC];
          read_pack<VEC, true>(parts + order[t] * DIM + q, v);
          EQTP_UNROLL
          for (int c = 0; c < VEC; ++c) sum[c] += v[c];
        }
      });
      EQTP_UNROLL
      for (int c = 0; c < VEC; ++c) write(gx + row * DIM + column[q + c], sum[c]);
    }
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
