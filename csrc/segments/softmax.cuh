// Softmax of each column over segments, and its backward. The walk is that of sum.cuh.
//
// Floor, in bytes: 2 e c sizeof(T) and 8 e of `order`; the backward 3 e c sizeof(T) and 8 e. A row must be read from
// memory once only, so each thread holds the first `held` vectors of its part in registers, which is all of them as a
// rule: teams have parts enough. What is more is read again, from the caches.
#pragma once
#include "segments/sum.cuh"

namespace eqtp {

// Vectors that a thread can hold: 40 registers of 32 bits; of each of the two operands of the backward half of it
template <class T, int VEC>
constexpr int held = VEC == 1 ? 16 : 40 * 4 / (VEC * int(sizeof(Real<T>)));

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <class R, int VEC>
struct Maximum {
  R v[VEC];
  __device__ __forceinline__ void take(const R* other) {
    each<0, VEC>(
        [&](auto i) { v[i] = other[i] > v[i] || other[i] != other[i] ? other[i] : v[i]; });  // NaN: nothing is larger
  }
  __device__ __forceinline__ void merge(const Maximum& other) { take(other.v); }
  __device__ __forceinline__ Maximum from(int bits) const {
    Maximum other;
    each<0, VEC>([&](auto i) { other.v[i] = __shfl_xor_sync(ALL_LANES, v[i], bits); });
    return other;
  }
};

// Softmax of a team's rows of a segment, one vector of columns. x, out: the first vector of this column; `on`: this
// lane has one
template <class T, int VEC>
struct Softmax {
  using R = Real<T>;
  const T* __restrict__ x;
  Index x_stride;
  const Index* __restrict__ order;
  T* __restrict__ out;
  Index c;
  Maximum<R, VEC> max;
  Sum<R, VEC> sum;

  __device__ __forceinline__ void begin() {
    each<0, VEC>([&](auto i) { max.v[i] = -R(INFINITY), sum.v[i] = 0; });
  }
  __device__ __forceinline__ void all_masked() {
    each<0, VEC>([&](auto i) { max.v[i] = max.v[i] == -R(INFINITY) ? R(0) : max.v[i]; });
  }
  __device__ __forceinline__ void add(R* v) {  // v becomes its exponential
    each<0, VEC>([&](auto i) { sum.v[i] += v[i] = exponential(v[i] - max.v[i]); });
  }
  __device__ __forceinline__ void scale() {  // sum becomes the factor of the exponentials
    each<0, VEC>([&](auto i) { sum.v[i] = sum.v[i] == 0 ? R(0) : 1 / sum.v[i]; });
  }
  __device__ __forceinline__ void put(Index edge, R* v) {
    each<0, VEC>([&](auto i) { v[i] *= sum.v[i]; });
    store<VEC>(out + edge * c, v);
  }
  __device__ __forceinline__ void run(const Team& team, bool on, Index first, Index last) {
    constexpr int N = held<T, VEC>;
    const Index mine = first + team.part, end = on ? last : first;  // this thread's places in `order`
    const Index others = mine + N * team.parts;  // rows that are not held
    const auto each_row = [&](Index t, Index to, auto&& f) {
#pragma unroll 1
      for (; t < to; t += team.parts) {
        const Index edge = __ldg(order + t);
        R w[VEC];
        load<VEC>(x + edge * x_stride, w);
        f(edge, w);
      }
    };
    const int rows = mine < end ? int(min(Index(N), (end - mine + team.parts - 1) / team.parts)) : 0;  // held
    R v[N][VEC];
    begin();
    each<0, N>([&](auto u) {
      if (u < rows) load<VEC>(x + __ldg(order + mine + u * team.parts) * x_stride, v[u]);
    });
    each<0, N>([&](auto u) {
      if (u < rows) max.take(v[u]);
    });
    each_row(others, end, [&](Index, R* w) { max.take(w); });
    combine(max, team);
    all_masked();
    each<0, N>([&](auto u) {
      if (u < rows) add(v[u]);
    });
    sum_blocks<R, VEC, BLOCK_TERMS - N>(sum.v, others, end, team.parts,
                                        [&](Index t, Index to) { each_row(t, to, [&](Index, R* w) { add(w); }); });
    combine(sum, team);
    scale();
    each<0, N>([&](auto u) {
      if (u < rows) put(__ldg(order + mine + u * team.parts), v[u]);
    });
    each_row(others, end, [&](Index edge, R* w) {
      each<0, VEC>([&](auto i) { w[i] = exponential(w[i] - max.v[i]); });
      put(edge, w);
    });
  }
};

// out[e] = exp(x[e] - m) / (sum of exp(x[f] - m)) over the rows f of e's segment, m the largest of them. x [e, c], rows
// x_stride apart, out [e, c]
template <class T, int VEC>
__global__ void __launch_bounds__(SEGMENT_THREADS, 2)
    segment_softmax_kernel(const T* __restrict__ x, Index x_stride, const Index* __restrict__ ptr,
                           const Index* __restrict__ order, Index num, Index c, int lanes, int parts, Index limit,
                           T* __restrict__ out) {
  const Index vectors = c / VEC;
  each_segment(ptr, num, vectors, lanes, parts, limit, [&](const Team& team, Index, Index i, Index first, Index last) {
    Softmax<T, VEC> softmax{x + i * VEC, x_stride, order, out + i * VEC, c};
    softmax.run(team, i < vectors, first, last);
  });
}

// gx[e] = y[e] (g[e] - sum of y[f] g[f]) over the rows f of e's segment. g, y [e, c], rows g_stride, y_stride apart, gx
// [e, c]
template <class T, int VEC>
__global__ void __launch_bounds__(SEGMENT_THREADS, 2)
    segment_softmax_bwd_kernel(const T* __restrict__ g, Index g_stride, const T* __restrict__ y, Index y_stride,
                               const Index* __restrict__ ptr, const Index* __restrict__ order, Index num, Index c,
                               int lanes, int parts, Index limit, T* __restrict__ gx) {
  using R = Real<T>;
  constexpr int N = held<T, VEC> / 2;
  const Index vectors = c / VEC;
  each_segment(ptr, num, vectors, lanes, parts, limit, [&](const Team& team, Index, Index i, Index first, Index last) {
    const Index at = i * VEC, mine = first + team.part;
    Sum<R, VEC> sum = {};
    const auto add = [&](const R* a, const R* b) {
      each<0, VEC>([&](auto k) { sum.v[k] = fused(a[k], b[k], sum.v[k]); });
    };
    const auto put = [&](Index edge, R* a, const R* b) {
      each<0, VEC>([&](auto k) { a[k] = b[k] * (a[k] - sum.v[k]); });
      store<VEC>(gx + edge * c + at, a);
    };
    const Index end = i < vectors ? last : first;
    const Index others = mine + N * team.parts;  // rows that are not held
    const auto each_row = [&](Index t, Index to, auto&& f) {
#pragma unroll 2
      for (; t < to; t += team.parts) {
        const Index edge = __ldg(order + t);
        R a[VEC], b[VEC];
        load<VEC>(g + edge * g_stride + at, a);
        load<VEC>(y + edge * y_stride + at, b);
        f(edge, a, b);
      }
    };
    const int rows = mine < end ? int(min(Index(N), (end - mine + team.parts - 1) / team.parts)) : 0;  // held
    R a[N][VEC], b[N][VEC];
    each<0, N>([&](auto u) {
      if (u >= rows) return;
      const Index edge = __ldg(order + mine + u * team.parts);
      load<VEC>(g + edge * g_stride + at, a[u]);
      load<VEC>(y + edge * y_stride + at, b[u]);
    });
    each<0, N>([&](auto u) {
      if (u < rows) add(a[u], b[u]);
    });
    sum_blocks<R, VEC, BLOCK_TERMS - N>(sum.v, others, end, team.parts, [&](Index t, Index to) {
      each_row(t, to, [&](Index, R* a, R* b) { add(a, b); });
    });
    combine(sum, team);
    each<0, N>([&](auto u) {
      if (u < rows) put(__ldg(order + mine + u * team.parts), a[u], b[u]);
    });
    each_row(others, end, put);
  });
}

}  // namespace eqtp
