// Dual numbers of one SIMD level: a value and its derivative along a direction, so that one formula gives both.
#pragma once
#include "common/simd.h"

#ifdef EQTP_SIMD

namespace eqtp::EQTP_SIMD {

template <class T>
struct Dual {
  Vec<T> v, d;
};
template <class T>
EQTP_INLINE Dual<T> operator+(Dual<T> a, Dual<T> b) {
  return {a.v + b.v, a.d + b.d};
}
template <class T>
EQTP_INLINE Dual<T> operator-(Dual<T> a, Dual<T> b) {
  return {a.v - b.v, a.d - b.d};
}
template <class T>
EQTP_INLINE Dual<T> operator*(Dual<T> a, Dual<T> b) {
  return {a.v * b.v, a.d * b.v + a.v * b.d};
}
template <class T>
EQTP_INLINE Dual<T> operator*(Dual<T> a, Vec<T> b) {
  return {a.v * b, a.d * b};
}
template <class T>
EQTP_INLINE Dual<T> operator*(T a, Dual<T> b) {
  return {a * b.v, a * b.d};
}

// What a number N (Vec<T> or Dual<T>) is made from, and what of it is written
template <class T, class N>
struct Number;
template <class T>
struct Number<T, Vec<T>> {
  EQTP_INLINE Vec<T> make(Vec<T> v, Vec<T>) { return v; }
  EQTP_INLINE Vec<T> result(Vec<T> a) { return a; }
};
template <class T>
struct Number<T, Dual<T>> {
  EQTP_INLINE Dual<T> make(Vec<T> v, Vec<T> d) { return {v, d}; }
  EQTP_INLINE Vec<T> result(Dual<T> a) { return a.d; }
};

}  // namespace eqtp::EQTP_SIMD
#endif
