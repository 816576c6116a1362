// W rows of W numbers <-> W columns, in registers.
#pragma once
#include "common/simd.h"

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

}  // namespace eqtp::EQTP_SIMD
#endif
