// A unit of a specialised plan (channelwise.cuh): where its threads stand, what they read and write, and the
// coefficients as constants.
//
// P: DIM1, DIM2, DIM3, NUMEL row lengths; STAGES and RINGS, slots and bytes (ring.cuh); UNITS, and per unit MUL, CPL,
// LANES, the ranges IN, OUT, PATH of its blocks and paths; per block of x IN_OFFSET (mul_ir row), IN_D, IN_AT (first
// register); per block of the output the same; per path W (first weight, -1: none), X, O (first registers), Y (first
// column of y), D1, D2, ENTRY; per entry of M its I, K and TERM; per term J (column of y) and C. VEC_Y: numbers of a
// row of y in one load.
#pragma once
#include "common/long_sums.cuh"

namespace eqtp {

constexpr int THREADS = 128;
enum Mode { GRAPH, ROWS, EDGES };  // sorted edges, one edge per row, edges in any order

// ----------------------------------------------------------------------------------------------------------------
//   loads and stores
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
// What is used once, weights and their gradients, goes past the caches (.cs), so that rows that are used again stay
// there.
template <class A>
__device__ __forceinline__ A load_streaming(const A* p) {
#ifdef __CUDA_ARCH__
  union {
    unsigned w[4];
    A a;
  } v;
  if constexpr (sizeof(A) == 16)
    asm("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
        : "l"(p));
  else if constexpr (sizeof(A) == 8) asm("ld.global.cs.v2.u32 {%0, %1}, [%2];" : "=r"(v.w[0]), "=r"(v.w[1]) : "l"(p));
  else if constexpr (sizeof(A) == 4) asm("ld.global.cs.u32 %0, [%1];" : "=r"(v.w[0]) : "l"(p));
  else return *p;
  return v.a;
#else
  return *p;
#endif
}
template <class A>
__device__ __forceinline__ void store_streaming(A* p, A a) {
#ifdef __CUDA_ARCH__
  union {
    A a;
    unsigned w[4];
  } v;
  v.a = a;
  if constexpr (sizeof(A) == 16)
    asm volatile("st.global.cs.v4.u32 [%4], {%0, %1, %2, %3};" ::"r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]), "r"(v.w[3]),
                 "l"(p));
  else if constexpr (sizeof(A) == 8)
    asm volatile("st.global.cs.v2.u32 [%2], {%0, %1};" ::"r"(v.w[0]), "r"(v.w[1]), "l"(p));
  else if constexpr (sizeof(A) == 4) asm volatile("st.global.cs.u32 [%1], %0;" ::"r"(v.w[0]), "l"(p));
  else *p = a;
#else
  *p = a;
#endif
}
// N numbers in one access; `p` is aligned to all of them
template <int N, bool STREAMING = false, class T>
__device__ __forceinline__ void read_pack(const T* p, Real<T>* v) {
  const auto* const at = reinterpret_cast<const Pack<T, N>*>(p);
  const Pack<T, N> a = STREAMING ? load_streaming(at) : *at;
  EQTP_UNROLL
  for (int i = 0; i < N; ++i) v[i] = read(a.v[i]);
}
template <int N, bool STREAMING = true, class T>
__device__ __forceinline__ void write_pack(T* p, const Real<T>* v) {
  Pack<T, N> a;
  EQTP_UNROLL
  for (int i = 0; i < N; ++i) write(&a.v[i], v[i]);
  auto* const at = reinterpret_cast<Pack<T, N>*>(p);
  if constexpr (STREAMING) store_streaming(at, a);
  else *at = a;
}
template <int N, class R>
__device__ __forceinline__ void clear(R* v) {
  EQTP_UNROLL
  for (int i = 0; i < N; ++i) v[i] = 0;
}
// N numbers from the u-th on that are STEP apart
template <int N, int STEP, class T>
__device__ __forceinline__ void read_apart(const T* p, int u, Real<T>* v) {
  EQTP_UNROLL
  for (int c = 0; c < N; ++c) v[c] = read(p[(u + c) * STEP]);
}

// ----------------------------------------------------------------------------------------------------------------
//   geometry of a unit
template <class P, int U>
struct Unit {
  static constexpr int MUL = P::MUL[U], CPL = P::CPL[U];
  static constexpr int IN = P::IN[U], IN_END = P::IN[U + 1], OUT = P::OUT[U], OUT_END = P::OUT[U + 1],
                       PATH = P::PATH[U], PATH_END = P::PATH[U + 1];
  static constexpr int NX = P::IN_AT[IN_END - 1] + P::IN_D[IN_END - 1],
                       NO = P::OUT_AT[OUT_END - 1] + P::OUT_D[OUT_END - 1], NP = PATH_END - PATH;
  static constexpr int LANES = P::LANES[U], WORKERS = THREADS / LANES, CHUNK = LANES * CPL;
  static constexpr int CHUNKS = (MUL + CHUNK - 1) / CHUNK;
  static constexpr bool FULL = MUL % CHUNK == 0;  // every thread has channels
};
// Blocks of x (OUT: of the output) of a unit: q = FIRST .. LAST - 1
template <class P, class G, bool OUT>
struct Blocks {
  static constexpr int FIRST = OUT ? G::OUT : G::IN, LAST = OUT ? G::OUT_END : G::IN_END;
  static __device__ constexpr int dim(int q) { return OUT ? P::OUT_D[q] : P::IN_D[q]; }
  static __device__ constexpr int offset(int q) { return OUT ? P::OUT_OFFSET[q] : P::IN_OFFSET[q]; }  // mul_ir row
  static __device__ constexpr int at(int q) { return OUT ? P::OUT_AT[q] : P::IN_AT[q]; }  // first register
};
template <class P, int U>
__device__ constexpr int first_block() {  // blocks of the units before U
  if constexpr (U == 0) return 0;
  else return first_block<P, U - 1>() + Unit<P, U - 1>::CHUNKS;
}
template <class P>
__device__ constexpr int numbers_per_thread() {  // of shared memory: [CPL, d] of the largest block
  int most = 1;
  for (int u = 0; u < P::UNITS; ++u) {
    for (int q = P::IN[u]; q < P::IN[u + 1]; ++q) most = P::CPL[u] * P::IN_D[q] > most ? P::CPL[u] * P::IN_D[q] : most;
    for (int q = P::OUT[u]; q < P::OUT[u + 1]; ++q)
      most = P::CPL[u] * P::OUT_D[q] > most ? P::CPL[u] * P::OUT_D[q] : most;
  }
  return most;
}

// Where a thread stands: worker `worker`, channels u .. u + CPL - 1 of chunk `chunk`. A thread behind the last channel
// repeats the last ones, so that no load has a condition, and is not `active`: what it finds is dropped.
struct Place {
  int lane, worker, chunk, u;
  bool active;
};
template <class G>
__device__ __forceinline__ Place place(int chunk) {
  const int lane = int(threadIdx.x) % G::LANES;
  const int u = chunk * G::CHUNK + lane * G::CPL;
  const bool active = G::FULL || u < G::MUL;
  return {lane, int(threadIdx.x) / G::LANES, chunk, active ? u : G::MUL - G::CPL, active};
}

// Sum of N numbers that are STEP apart, by halves
template <int N, int STEP, class R>
__device__ __forceinline__ R sum_strided(const R* p) {
  if constexpr (N == 1) return *p;
  else return sum_strided<N / 2, STEP>(p) + sum_strided<N - N / 2, STEP>(p + N / 2 * STEP);
}

// Sums of a thread in the blocks before q, [CHUNK, d] each: every block begins with the first thread
template <class B, class G>
__device__ constexpr int sums_before(int q) {
  int sums = 0;
  for (int n = B::FIRST; n < q; ++n) sums += (G::CHUNK * B::dim(n) + THREADS - 1) / THREADS;
  return sums;
}
template <class P, int U = 0>
__device__ constexpr int sums_per_thread() {  // in the unit that has most
  if constexpr (U == P::UNITS) {
    return 1;
  } else {
    using G = Unit<P, U>;
    constexpr int in = sums_before<Blocks<P, G, false>, G>(G::IN_END),
                  out = sums_before<Blocks<P, G, true>, G>(G::OUT_END), others = sums_per_thread<P, U + 1>();
    return in > out ? (in > others ? in : others) : out > others ? out : others;
  }
}
template <class P, class R>
using RowSums = LongSums<R, sums_per_thread<P>()>;

// Registers [d, CPL] of a block -> [CHUNK, d] in shared memory
template <class G, int d, class R>
__device__ __forceinline__ void write_tile(const R* v, const Place& at, R* own) {
  EQTP_UNROLL
  for (int c = 0; c < G::CPL; ++c) {
    EQTP_UNROLL
    for (int k = 0; k < d; ++k) own[(at.lane * G::CPL + c) * d + k] = v[k * G::CPL + c];
  }
}
// Channels that a chunk has
template <class G>
__device__ __forceinline__ int channels_of(const Place& at) {
  const int left = G::MUL - at.chunk * G::CHUNK;
  return left < G::CHUNK ? left : G::CHUNK;
}
// Blocks [d, CPL] in registers -> block [mul, d] of a row, whole lines at a time: the workers' numbers are added, by
// halves, and written after the last block of edges. Of `sums` the block has those from number FIRST on.
template <class P, class G, int d, int FIRST, class T, class R>
__device__ __forceinline__ void write_block(const R* v, T* row, const Place& at, R* tile, RowSums<P, R>& sums,
                                            BlockOfSum block) {
  write_tile<G, d>(v, at, tile + at.worker * (G::CHUNK * d));
  T* const to = row + Index(at.chunk) * (G::CHUNK * d);
  __syncthreads();
  int n = FIRST;
  EQTP_LOOP
  for (int q = int(threadIdx.x); q < channels_of<G>(at) * d; q += THREADS, ++n) {
    const R s = sums.add(n, sum_strided<G::WORKERS, G::CHUNK * d>(tile + q), block);
    if (block.last) write(to + q, s);
  }
  __syncthreads();
}
// The same where each worker has a row of its own, if `valid`. A warp has a part of the tile of its own, because warps
// do not wait for each other.
template <class P, class G, int d, int MODE, class T, class R>
__device__ __forceinline__ void write_rows(const R* v, T* row, bool valid, const Place& at, R* tile) {
  R* const own = tile + at.worker * (G::LANES * numbers_per_thread<P>());
  write_tile<G, d>(v, at, own);
  T* const to = row + Index(at.chunk) * (G::CHUNK * d);
  __syncwarp();
  if (valid) {
    EQTP_LOOP
    for (int q = at.lane; q < channels_of<G>(at) * d; q += G::LANES) {
      if constexpr (MODE == EDGES) atomicAdd(to + q, own[q]);
      else write(to + q, own[q]);
    }
  }
  __syncwarp();
}

// ----------------------------------------------------------------------------------------------------------------
//   operands
// A tensor [rows, .] and the distance of its rows
template <class T>
struct StridedRows {
  const T* p;
  Index stride;
  __device__ __forceinline__ const T* row(Index n) const { return p + n * stride; }
};
// What the kernels take, by value: CONV_PARAMS of eqtp/backends/jit/channelwise.py has the same fields. A null pointer:
// absent, or not wanted.
template <class T>
struct ConvParams {
  StridedRows<T> x, w, g;  // [num_src, DIM1], [e, NUMEL], [num_dst, DIM3]
  StridedRows<T> tx, tw;  // the direction of x and w
  StridedRows<Real<T>> y, ty;  // [e, DIM2] and its direction
  // GRAPH: the row that edge e leads to, and the CSR of the rows that are summed. EDGES: the row that is read, and in
  // ptr the row that is added to
  const Index *neighbour, *ptr, *order;  // [e], [rows + 1], [e]
  T *out, *gx, *gw;  // [num_dst, DIM3], [num_src, DIM1], [e, NUMEL]
  // parts of the gradient of y [e, blocks of units, DIM2]; the gradient of x of each edge [e, DIM1], planar
  Real<T>*gy, *gxe;
  Index rows;  // that are summed; ROWS, EDGES: edges
};

// The operands of an edge in registers; the second half is the direction. x [NX, CPL], w [NP, CPL], g [NO, CPL].
template <class P, class G, bool TANGENT, class R>
struct Operands {
  static constexpr bool SHARED = false;
  R x[G::NX * G::CPL], w[G::NP * G::CPL], y[P::DIM2], tx[TANGENT ? G::NX * G::CPL : 1],
      tw[TANGENT ? G::NP * G::CPL : 1], ty[TANGENT ? P::DIM2 : 1];
  __device__ __forceinline__ void weights(int p, R* v) const { copy<G::CPL>(w + (p - G::PATH) * G::CPL, v); }
  __device__ __forceinline__ void weights_along(int p, R* v) const { copy<G::CPL>(tw + (p - G::PATH) * G::CPL, v); }
  __device__ __forceinline__ void columns(int, R* v) const { copy<P::DIM2>(y, v); }
  __device__ __forceinline__ void columns_along(int, R* v) const { copy<P::DIM2>(ty, v); }
  template <int N>
  static __device__ __forceinline__ void copy(const R* from, R* to) {
    EQTP_UNROLL
    for (int i = 0; i < N; ++i) to[i] = from[i];
  }
};
template <class P, class R>
__device__ __forceinline__ void read_y(const R* y, R* v) {
  each<0, P::DIM2 / P::VEC_Y>([&](auto q) { read_pack<P::VEC_Y>(y + q * P::VEC_Y, v + q * P::VEC_Y); });
}
// Blocks [mul, d] of a row of x or g -> registers [d, CPL]
template <class P, class G, bool OUT, class T>
__device__ __forceinline__ void read_row(const T* row, const Place& at, Real<T>* v) {
  using B = Blocks<P, G, OUT>;
  each<B::FIRST, B::LAST>([&](auto Q) {
    constexpr int q = Q;
    each<0, B::dim(q)>([&](auto I) {
      constexpr int i = I;
      read_apart<G::CPL, B::dim(q)>(row + Int<B::offset(q) + i>::value, at.u, v + Int<B::at(q) + i>::value * G::CPL);
    });
  });
}
// Registers [d, CPL] per block of x -> a planar row, [d, mul] per block
template <class P, class G, class R>
__device__ __forceinline__ void write_planar(const R* v, R* row, const Place& at) {
  using B = Blocks<P, G, false>;
  row = opaque(row + at.u);
  each<B::FIRST, B::LAST>([&](auto Q) {
    constexpr int q = Q;
    each<0, B::dim(q)>([&](auto I) {
      constexpr int i = I;
      write_pack<G::CPL, false>(row + Int<B::offset(q) + i * G::MUL>::value, v + Int<B::at(q) + i>::value * G::CPL);
    });
  });
}
// Weights [NP, CPL]; a path without has `none`
template <class P, class G, class T>
__device__ __forceinline__ void read_weights(const T* w, const Place& at, Real<T> none, Real<T>* v) {
  each<G::PATH, G::PATH_END>([&](auto N) {
    constexpr int p = N;
    Real<T>* const to = v + (p - G::PATH) * G::CPL;
    if constexpr (P::W[p] >= 0) read_pack<G::CPL, true>(w + Int<P::W[p]>::value + at.u, to);
    else {
      EQTP_UNROLL
      for (int c = 0; c < G::CPL; ++c) to[c] = none;
    }
  });
}
// M[k, i] = sum_j C[i, j, k] y[j] of entry E
template <class P, int E, class R>
__device__ __forceinline__ R entry(const R* y) {
  constexpr int first = P::TERM[E], j = P::J[first];
  constexpr R c = R(P::C[first]);
  R m = c * y[j];
  each<P::TERM[E] + 1, P::TERM[E + 1]>([&](auto N) {
    constexpr int t = N, j = P::J[t];
    constexpr R c = R(P::C[t]);
    m = fused(c, y[j], m);
  });
  return m;
}

}  // namespace eqtp
