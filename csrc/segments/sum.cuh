// Sums of rows over segments (the edges into each destination of a graph), and what all kernels of segments stand on.
//
// Floor, in bytes: e c sizeof(T) read, num c sizeof(T) written, 8 e of `order`, 8 num of `ptr`; one addition for each
// number read, so memory is all that counts. Rows are read as vectors of VEC numbers (16 bytes, where all rows are
// aligned to that), UNROLL of them at a time by each thread.
//
// A team of lanes x parts threads, never more than a warp, takes 32 or fewer vectors of columns ("a tile") of one
// segment: lane l vector l of the tile, part p the rows p, p + parts, ... of the segment; the parts are combined by
// shuffles. Rows that are narrow leave lanes to more parts and to more segments. A segment longer than `limit` is taken
// by all warps of the block together, combined through shared memory. Which thread adds what follows from the sizes and
// the segment's length alone, and nothing is atomic: the same bits every time.
#pragma once
#include "common/device.cuh"
#include "common/long_sums.cuh"

namespace eqtp {

constexpr int SEGMENT_THREADS = 256, SEGMENT_WARPS = SEGMENT_THREADS / 32;
constexpr int WHOLE_VECTOR = 16;  // bytes that a thread loads at once

// Who takes part in a segment, and as what
struct Team {
  int lane, lanes;  // vector of columns within the tile
  int part, parts;  // rows part, part + parts, ...
  bool whole;  // all warps of the block
};

// The vector at p as registers. VEC > 1: p is aligned to 16 bytes.
template <int VEC, class T>
__device__ __forceinline__ void load(const T* p, Real<T>* v) {
  if constexpr (VEC == 1) {
    v[0] = read(*p);
  } else {
    union {
      uint4 raw;
      T number[VEC];
    } u;
    u.raw = __ldg(reinterpret_cast<const uint4*>(p));
    each<0, VEC>([&](auto i) { v[i] = read(u.number[i]); });
  }
}
template <int VEC, class T>
__device__ __forceinline__ void store(T* p, const Real<T>* v) {
  if constexpr (VEC == 1) {
    write(p, v[0]);
  } else {
    union {
      uint4 raw;
      T number[VEC];
    } u;
    each<0, VEC>([&](auto i) { write(&u.number[i], v[i]); });
    *reinterpret_cast<uint4*>(p) = u.raw;
  }
}

// Combines the parts of a team: afterwards all of them hold the result. A has `void merge(const A&)`, which is
// commutative, and `A from(int bits)`, the value of the lane with these bits of its number flipped. Every thread of the
// warp has to come (team.whole: of the block).
template <class A>
__device__ __forceinline__ void combine(A& a, const Team& team) {
  const int end = team.whole ? 32 : team.lanes * team.parts;
  for (int d = team.lanes; d < end; d *= 2) a.merge(a.from(d));
  if (!team.whole) return;
  __shared__ A partial[SEGMENT_WARPS][32];
  const int lane = threadIdx.x % 32;
  partial[threadIdx.x / 32][lane] = a;
  __syncthreads();
  a = partial[0][lane];
  for (int w = 1; w < SEGMENT_WARPS; ++w) a.merge(partial[w][lane]);
  __syncthreads();
}

// Calls f(team, n, i, first, last) for each tile of each segment: n its number, i this lane's vector of columns,
// [first, last) its places in `order`. All threads of a warp come together, also those without a segment (last = first,
// n = -1) or a column (i >= vectors). units = num tiles.
template <class F>
__device__ __forceinline__ void each_segment(const Index* __restrict__ ptr, Index num, Index vectors, int lanes,
                                             int parts, Index limit, F&& f) {
  __shared__ unsigned longer[2][SEGMENT_WARPS];  // lanes whose segment is long
  const int thread = threadIdx.x, size = lanes * parts, teams = SEGMENT_THREADS / size, lane = thread % lanes;
  const Index tiles = (vectors + lanes - 1) / lanes, units = num * tiles;
  int turn = 0;
  for (Index begin = Index(blockIdx.x) * teams; begin < units; begin += Index(gridDim.x) * teams, turn ^= 1) {
    const Index unit = begin + thread / size, n = tiles == 1 ? unit : unit / tiles;
    const bool any = unit < units;
    const Index first = any ? ptr[n] : 0, last = any ? ptr[n + 1] : 0;
    const bool is_long = last - first > limit;
    const unsigned mask = __ballot_sync(ALL_LANES, is_long);
    if (thread % 32 == 0) longer[turn][thread / 32] = mask;
    __syncthreads();
    const bool taken = any && !is_long;
    f(Team{lane, lanes, thread / lanes % parts, parts, false}, taken ? n : Index(-1), (unit - n * tiles) * lanes + lane,
      first, taken ? last : first);
    const Team block{lane, lanes, thread / lanes, SEGMENT_THREADS / lanes, true};
    for (int w = 0; w < SEGMENT_WARPS; ++w) {
      const unsigned found = longer[turn][w];
      if (!found) continue;
      for (int b = 0; b < 32; b += size)
        if (found >> b & 1) {
          const Index u = begin + (32 * w + b) / size, m = u / tiles;
          f(block, m, (u - m * tiles) * lanes + lane, ptr[m], ptr[m + 1]);
        }
    }
  }
}

// Calls f(t, v) for the places t, t + step, .. < last of a segment in their order, v the vector of row order[t] at x;
// UNROLL rows are on their way at a time.
template <int VEC, int UNROLL, class T, class F>
__device__ __forceinline__ void each_row(const T* __restrict__ x, Index x_stride, const Index* __restrict__ order,
                                         int step, Index t, Index last, F&& f) {
  for (; t + (UNROLL - 1) * step < last; t += UNROLL * step) {
    Index edge[UNROLL];
    Real<T> v[UNROLL][VEC];
    each<0, UNROLL>([&](auto u) { edge[u] = __ldg(order + t + u * step); });
    each<0, UNROLL>([&](auto u) { load<VEC>(x + edge[u] * x_stride, v[u]); });
    each<0, UNROLL>([&](auto u) { f(t + u * step, v[u]); });
  }
  for (; t < last; t += step) {
    Real<T> v[VEC];
    load<VEC>(x + __ldg(order + t) * x_stride, v);
    f(t, v);
  }
}

template <class R, int VEC>
struct Sum {
  R v[VEC];
  __device__ __forceinline__ void merge(const Sum& other) {
    each<0, VEC>([&](auto i) { v[i] += other.v[i]; });
  }
  __device__ __forceinline__ Sum from(int bits) const {
    Sum other;
    each<0, VEC>([&](auto i) { other.v[i] = __shfl_xor_sync(ALL_LANES, v[i], bits); });
    return other;
  }
};

// out[n] = sum over t in [ptr[n], ptr[n + 1]) of x[order[t]]; x [e, c], rows x_stride apart, out [num, c]
template <class T, int VEC>
__global__ void __launch_bounds__(SEGMENT_THREADS, 4)
    segment_sum_kernel(const T* __restrict__ x, Index x_stride, const Index* __restrict__ ptr,
                       const Index* __restrict__ order, Index num, Index c, int lanes, int parts, Index limit,
                       T* __restrict__ out) {
  const Index vectors = c / VEC;
  each_segment(ptr, num, vectors, lanes, parts, limit,
               [&](const Team& team, Index n, Index i, Index first, Index last) {
                 Sum<Real<T>, VEC> sum = {};
                 if (i < vectors)
                   sum_blocks<Real<T>, VEC>(sum.v, first + team.part, last, team.parts, [&](Index t, Index end) {
                     each_row<VEC, VEC == 1 ? 8 : 4>(
                         x + i * VEC, x_stride, order, team.parts, t, end,
                         [&](Index, const Real<T>* v) { each<0, VEC>([&](auto k) { sum.v[k] += v[k]; }); });
                   });
                 combine(sum, team);
                 if (team.part == 0 && n >= 0 && i < vectors) store<VEC>(out + n * c + i * VEC, sum.v);
               });
}

}  // namespace eqtp

#ifndef __CUDACC_RTC__  // ---- launch
namespace eqtp {

// Shape of the teams, from what length a segment is long, and number of blocks
struct Teams {
  int lanes, parts;
  Index limit;
  unsigned blocks;
};
// vectors: of a row. A part should have two rows of a segment of average length. A team gets `least_parts` where it
// can, and more where segments are so few that not enough threads would be under way, from lanes, as long as 64 bytes
// of a row are read together.
inline Teams teams(Index e, Index num, Index vectors, int vector_bytes, int least_parts = 1) {
  constexpr Index enough = 1 << 17;  // threads
  Teams t{1, 1, 0, 0};
  const auto two_rows = [&] { return 4 * t.parts * num <= e; };  // with twice the parts
  while (t.lanes < 32 && t.lanes < vectors) t.lanes *= 2;
  while (t.lanes * t.parts < 32 && (t.parts < least_parts || two_rows())) t.parts *= 2;
  while (t.lanes * vector_bytes > 64 && (t.parts < least_parts || (two_rows() && num * vectors * t.parts < enough)))
    t.lanes /= 2, t.parts *= 2;
  t.limit = 256 * t.parts;
  const Index size = t.lanes * t.parts, units = num * ((vectors + t.lanes - 1) / t.lanes),
              blocks = (units * size + SEGMENT_THREADS - 1) / SEGMENT_THREADS;
  t.blocks = unsigned(blocks < 0x7fffffff ? blocks : 0x7fffffff);
  return t;
}

}  // namespace eqtp
#endif
