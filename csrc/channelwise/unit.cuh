// A unit of a specialised plan (channelwise.cuh): where its threads stand, what they read and write, and the
// coefficients as constants.
//
// P: DIM1, DIM2, DIM3, NUMEL row lengths; UNITS, and per unit MUL, CPL, AHEAD, the ranges IN, OUT, PATH of its blocks
// and paths; per block of x IN_OFFSET (mul_ir row), IN_D, IN_AT (first register); per block of the output the same; per
// path W (first weight, -1: none), X, O (first registers), D1, ENTRY; per entry of M its I, K and TERM; per term J
// (column of y) and C. VEC_Y: numbers of a row of y in one load.
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
template <int N, class T>
__device__ __forceinline__ void write_pack(T* p, const Real<T>* v) {
  Pack<T, N> a;
  EQTP_UNROLL
  for (int i = 0; i < N; ++i) write(&a.v[i], v[i]);
  store_streaming(reinterpret_cast<Pack<T, N>*>(p), a);
}
// CPL channels of one component, from channel u: neighbours in a planar row, else STEP apart
template <int CPL, int STEP, class T>
__device__ __forceinline__ void read_channels(const T* p, int u, Real<T>* v) {
  if constexpr (STEP == 1) read_pack<CPL>(p + u, v);
  else {
    EQTP_UNROLL
    for (int c = 0; c < CPL; ++c) v[c] = read(p[(u + c) * STEP]);
  }
}

// ----------------------------------------------------------------------------------------------------------------
//   geometry of a unit
template <class P, int U>
struct Unit {
  static constexpr int MUL = P::MUL[U], CPL = P::CPL[U];
  static constexpr bool AHEAD = P::AHEAD[U];
  static constexpr int IN = P::IN[U], IN_END = P::IN[U + 1], OUT = P::OUT[U], OUT_END = P::OUT[U + 1],
                       PATH = P::PATH[U], PATH_END = P::PATH[U + 1];
  static constexpr int NX = P::IN_AT[IN_END - 1] + P::IN_D[IN_END - 1],
                       NO = P::OUT_AT[OUT_END - 1] + P::OUT_D[OUT_END - 1], NP = PATH_END - PATH;
  static constexpr int LANES = P::LANES[U], WORKERS = THREADS / LANES, CHUNK = LANES * CPL;
  static constexpr int CHUNKS = (MUL + CHUNK - 1) / CHUNK;
  static constexpr bool FULL = MUL % CHUNK == 0;  // every thread has channels
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

// Sums of a thread in blocks first .. q - 1 of dimensions d, [CHUNK, d] each: every block begins with the first thread
template <class G>
__device__ constexpr int sums_before(const int* d, int first, int q) {
  int sums = 0;
  for (; first < q; ++first) sums += (G::CHUNK * d[first] + THREADS - 1) / THREADS;
  return sums;
}
template <class P, int U = 0>
__device__ constexpr int sums_per_thread() {  // in the unit that has most
  if constexpr (U == P::UNITS) {
    return 1;
  } else {
    using G = Unit<P, U>;
    constexpr int in = sums_before<G>(P::IN_D, G::IN, G::IN_END), out = sums_before<G>(P::OUT_D, G::OUT, G::OUT_END),
                  others = sums_per_thread<P, U + 1>();
    return in > out ? (in > others ? in : others) : out > others ? out : others;
  }
}
template <class P, int MODE, class R>
using RowSums = LongSums<R, MODE == GRAPH ? sums_per_thread<P>() : 1>;

// Registers [d, CPL] per block -> rows [mul, d] in memory, whole lines at a time, through `tile`. Unless GRAPH every
// worker has a row of its own (`row`, if `valid`), and a warp has a part of the tile of its own, because warps do not
// wait for each other; else the workers' numbers are added, by halves, into the row that they share, which is written
// after the last block of its edges. Of `sums` the block has those from number FIRST on.
template <class P, class G, int d, int MODE, int FIRST, class T, class R>
__device__ __forceinline__ void write_block(const R* v, T* row, bool valid, const Place& at, R* tile,
                                            RowSums<P, MODE, R>& sums, BlockOfSum block) {
  const int count = (G::MUL - at.chunk * G::CHUNK < G::CHUNK ? G::MUL - at.chunk * G::CHUNK : G::CHUNK) * d;
  R* const own = tile + at.worker * (MODE != GRAPH ? G::LANES * numbers_per_thread<P>() : G::CHUNK * d);  // [CHUNK, d]
  EQTP_UNROLL
  for (int c = 0; c < G::CPL; ++c) {
    EQTP_UNROLL
    for (int k = 0; k < d; ++k) own[(at.lane * G::CPL + c) * d + k] = v[k * G::CPL + c];
  }
  T* const to = row + Index(at.chunk) * (G::CHUNK * d);
  if constexpr (MODE != GRAPH) {
    __syncwarp();
    if (valid) {
      EQTP_LOOP
      for (int q = at.lane; q < count; q += G::LANES) {
        if constexpr (MODE == EDGES) atomicAdd(to + q, own[q]);
        else write(to + q, own[q]);
      }
    }
    __syncwarp();
  } else {
    __syncthreads();
    int n = FIRST;
    EQTP_LOOP
    for (int q = int(threadIdx.x); q < count; q += THREADS, ++n) {
      const R s = sums.add(n, sum_strided<G::WORKERS, G::CHUNK * d>(tile + q), block);
      if (block.last) write(to + q, s);
    }
    __syncthreads();
  }
}

// ----------------------------------------------------------------------------------------------------------------
//   operands of an edge
template <class P, class T>
__device__ __forceinline__ void read_y(const T* y, Real<T>* v) {
  each<0, P::DIM2 / P::VEC_Y>([&](auto q) { read_pack<P::VEC_Y>(y + q * P::VEC_Y, v + q * P::VEC_Y); });
}
// Blocks of a row into registers [d, CPL]; planar rows are [d, mul] per block
template <class P, class G, bool PLANAR, class T>
__device__ __forceinline__ void read_in(const T* row, const Place& at, Real<T>* v) {
  each<G::IN, G::IN_END>([&](auto Q) {
    constexpr int q = Q;
    each<0, P::IN_D[q]>([&](auto I) {
      constexpr int i = I;
      constexpr int step = PLANAR ? 1 : P::IN_D[q], first = P::IN_OFFSET[q] + i * (PLANAR ? G::MUL : 1);
      read_channels<G::CPL, step>(row + first, at.u, v + Int<P::IN_AT[q] + i>::value * G::CPL);
    });
  });
}
template <class P, class G, bool PLANAR, class T>
__device__ __forceinline__ void read_out(const T* row, const Place& at, Real<T>* v) {
  each<G::OUT, G::OUT_END>([&](auto Q) {
    constexpr int q = Q;
    each<0, P::OUT_D[q]>([&](auto K) {
      constexpr int k = K;
      constexpr int step = PLANAR ? 1 : P::OUT_D[q], first = P::OUT_OFFSET[q] + k * (PLANAR ? G::MUL : 1);
      read_channels<G::CPL, step>(row + first, at.u, v + Int<P::OUT_AT[q] + k>::value * G::CPL);
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
