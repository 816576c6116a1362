// Largest value of each column over segments, and the edge it comes from. The walk is that of sum.cuh.
//
// Floor, in bytes: e c sizeof(T) read, num c (sizeof(T) + 8) written, 8 e of `order`, 8 num of `ptr`.
#pragma once
#include "segments/sum.cuh"

namespace eqtp {

// The largest value so far and how far into the segment it stood: the first of equal ones, the first NaN before all. No
// segment has 2^32 edges: their indices alone would fill the memory.
template <class R, int VEC>
struct Largest {
  R v[VEC];
  unsigned at[VEC];
  __device__ __forceinline__ void take(int i, R value, unsigned place) {
    const bool nan = v[i] != v[i], new_nan = value != value;
    const bool more = value > v[i] || (new_nan && !nan), same = value == v[i] || (new_nan && nan);
    if (more || (same && place < at[i])) v[i] = value, at[i] = place;
  }
  __device__ __forceinline__ void merge(const Largest& other) {
    each<0, VEC>([&](auto i) { take(i, other.v[i], other.at[i]); });
  }
  __device__ __forceinline__ Largest from(int bits) const {
    Largest other;
    each<0, VEC>([&](auto i) {
      other.v[i] = __shfl_xor_sync(ALL_LANES, v[i], bits);
      other.at[i] = __shfl_xor_sync(ALL_LANES, at[i], bits);
    });
    return other;
  }
};

// out[n, i] = x[arg[n, i], i], the largest of x[order[t], i] for t in [ptr[n], ptr[n + 1]); no edges: 0 and arg = e. x
// [e, c], rows x_stride apart, out and arg [num, c]
template <class T, int VEC>
__global__ void __launch_bounds__(SEGMENT_THREADS, 3)
    segment_max_kernel(const T* __restrict__ x, Index x_stride, const Index* __restrict__ ptr,
                       const Index* __restrict__ order, Index e, Index num, Index c, int lanes, int parts, Index limit,
                       T* __restrict__ out, Index* __restrict__ arg) {
  const Index vectors = c / VEC;
  each_segment(
      ptr, num, vectors, lanes, parts, limit, [&](const Team& team, Index n, Index i, Index first, Index last) {
        Largest<Real<T>, VEC> largest;
        each<0, VEC>([&](auto k) {
          largest.v[k] = -Real<T>(INFINITY), largest.at[k] = ~0u;
        });  // taken from nowhere: any number replaces it
        if (i < vectors)
          each_row<VEC, VEC == 1 ? 8 : 4>(x + i * VEC, x_stride, order, team.parts, first + team.part, last,
                                          [&](Index t, const Real<T>* v) {
                                            each<0, VEC>([&](auto k) { largest.take(k, v[k], unsigned(t - first)); });
                                          });
        combine(largest, team);
        if (team.part > 0 || n < 0 || i >= vectors) return;
        if (first == last) each<0, VEC>([&](auto k) { largest.v[k] = 0; });
        store<VEC>(out + n * c + i * VEC, largest.v);
        each<0, VEC>([&](auto k) { arg[n * c + i * VEC + k] = first == last ? e : order[first + largest.at[k]]; });
      });
}

}  // namespace eqtp
