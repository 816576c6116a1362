// W rows of W numbers <-> W columns, in registers; and rows of samples to and from vectors whose lanes are the samples.
#pragma once
#include "simd.h"

namespace eqtp {

// A tensor [b, c, n] of samples z = b * count_c + c, of n numbers in a row each
template <class T>
struct Samples {
  T* data;
  int64_t stride_b, stride_c, n;
};

}  // namespace eqtp

#ifdef EQTP_SIMD
#include <utility>

namespace eqtp::EQTP_SIMD {

// Lane i of the result is lane index i of a and b together (b's lanes follow a's).
#if defined(__clang__)
#define EQTP_SHUFFLE(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define EQTP_SHUFFLE(T, a, b, ...) __builtin_shuffle(a, b, typename Simd<T>::I{__VA_ARGS__})
#endif
template <int... I>
using Indices = std::integer_sequence<int, I...>;
template <class T>
using AllLanes = std::make_integer_sequence<int, Simd<T>::W>;

// Exchanges the off-diagonal blocks of size D of two rows: a = (a0 a1), b = (b0 b1) -> (a0 b0), (a1 b1)
template <class T, int D, int... I>
EQTP_INLINE void exchange(Vec<T>& a, Vec<T>& b, Indices<I...>) {
  constexpr int W = Simd<T>::W;
  const Vec<T> p = a, q = b;
  a = EQTP_SHUFFLE(T, p, q, (I & D ? W + I - D : I)...);
  b = EQTP_SHUFFLE(T, p, q, (I & D ? W + I : I + D)...);
}
template <class T, int D>
EQTP_INLINE void transpose(Vec<T>* r) {
  constexpr int W = Simd<T>::W;
  if constexpr (D < W) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
      if (!(i & D)) exchange<T, D>(r[i], r[i + D], AllLanes<T>());
    transpose<T, 2 * D>(r);
  }
}

// Where the rows of a tile of `count` samples begin, from sample z on; the lanes behind the last sample repeat it.
template <class T>
EQTP_INLINE void find_rows(const Samples<T>& s, int64_t count_c, int64_t z, int count, T** rows) {
  int64_t b = z / count_c, c = z % count_c;
  for (int l = 0; l < Simd<T>::W; ++l) {
    rows[l] = s.data + b * s.stride_b + c * s.stride_c;
    if (l + 1 < count && ++c == count_c) c = 0, ++b;
  }
}

// Samples from z on -> tile[at[i]], the numbers i of all of them. Nothing behind the last number of the tensor, `end`, is read.
template <class T>
static void read_samples(const Samples<T>& s, int64_t count_c, int64_t z, int count, const T* end, const int32_t* at, Vec<T>* tile) {
  constexpr int W = Simd<T>::W;
  T* rows[W];
  find_rows(s, count_c, z, count, rows);
  bool whole = true;
  for (int l = 0; l < W; ++l) whole &= rows[l] + W <= end;
  if (s.n < W && !whole) {
    T* const numbers = reinterpret_cast<T*>(tile);
    for (int64_t i = 0; i < s.n; ++i)
      for (int l = 0; l < W; ++l) numbers[at[i] * W + l] = rows[l][i];
    return;
  }
  for (int64_t j = 0; j < s.n; j += W) {
    if (s.n >= W && j > s.n - W) j = s.n - W;
    Vec<T> r[W];
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l) r[l] = load(rows[l] + j);
    transpose<T, 1>(r);
    if (s.n - j >= W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) tile[at[j + i]] = r[i];
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i)
        if (j + i < s.n) tile[at[j + i]] = r[i];
    }
  }
}

// tile[at[i]] -> the numbers i of `count` samples from z on
template <class T>
static void write_samples(const Samples<T>& s, int64_t count_c, int64_t z, int count, const int32_t* at, const Vec<T>* tile) {
  constexpr int W = Simd<T>::W;
  T* rows[W];
  find_rows(s, count_c, z, count, rows);
  if (s.n < W) {
    Vec<T> r[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) r[i] = i < s.n ? tile[at[i]] : Vec<T>{};
    transpose<T, 1>(r);
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l)
      if (l < count) store_part(rows[l], r[l], int(s.n));
    return;
  }
  for (int64_t j = 0; j < s.n; j += W) {
    if (j > s.n - W) j = s.n - W;
    Vec<T> r[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) r[i] = tile[at[j + i]];
    transpose<T, 1>(r);
#pragma GCC unroll 16
    for (int l = 0; l < W; ++l)
      if (l < count) store(rows[l] + j, r[l]);
  }
}

}  // namespace eqtp::EQTP_SIMD
#endif
