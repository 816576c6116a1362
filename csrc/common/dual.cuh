// Dual numbers: a value and its derivative along a direction, so that one formula gives both. V: a number of a CUDA
// thread or a vector of SIMD lanes.
#pragma once

#ifdef __CUDACC__
#define EQTP_DUAL __device__ __forceinline__
#else
#define EQTP_DUAL inline __attribute__((always_inline))
#endif

namespace eqtp {

template <class V>
struct Dual {
  V v, d;
};
template <class V>
EQTP_DUAL Dual<V> operator+(Dual<V> a, Dual<V> b) {
  return {a.v + b.v, a.d + b.d};
}
template <class V>
EQTP_DUAL Dual<V> operator-(Dual<V> a, Dual<V> b) {
  return {a.v - b.v, a.d - b.d};
}
template <class V>
EQTP_DUAL Dual<V> operator*(Dual<V> a, Dual<V> b) {
  return {a.v * b.v, a.d * b.v + a.v * b.d};
}
template <class V>
EQTP_DUAL Dual<V> operator*(Dual<V> a, V b) {
  return {a.v * b, a.d * b};
}
template <class S, class V>  // S: V, or the number in its lanes
EQTP_DUAL Dual<V> operator*(S a, Dual<V> b) {
  return {a * b.v, a * b.d};
}

// What a number N (V or Dual<V>) is made from, and what of it is written
template <class N>
struct Make {
  static EQTP_DUAL N number(N v, N) { return v; }
  static EQTP_DUAL N result(N a) { return a; }
};
template <class V>
struct Make<Dual<V>> {
  static EQTP_DUAL Dual<V> number(V v, V d) { return {v, d}; }
  static EQTP_DUAL V result(Dual<V> a) { return a.d; }
};

}  // namespace eqtp
