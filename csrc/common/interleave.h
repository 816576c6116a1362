// W rows of D numbers, one after another in D vectors, <-> D vectors of one component each, in registers.
#pragma once
#include "common/transpose.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

// Lane l of component i is number l D + i of the rows. Three components go by shuffles of two vectors, except at 64
// bytes, where one permutation of each vector was measured to be as quick.
template <class T, int D>
struct Interleave {
  static constexpr int W = Simd<T>::W;
  static constexpr bool two_sources = D == 3 && Simd<T>::bytes < 64;
  static constexpr bool has_permutations = Simd<T>::bytes >= 32;  // of all lanes, as the other D want
  using I = typename Simd<T>::I;
  using N = typename Simd<T>::Index;

  // Where lane l of result i comes from: lane at[i][l] of vector from[i][l]
  struct Table { N at[D][W], from[D][W]; };
  static constexpr Table components() {
    Table t{};
    for (int i = 0; i < D; ++i)
      for (int l = 0; l < W; ++l) t.at[i][l] = (l * D + i) % W, t.from[i][l] = (l * D + i) / W;
    return t;
  }
  static constexpr Table rows() {
    Table t{};
    for (int i = 0; i < D; ++i)
      for (int l = 0; l < W; ++l) t.at[i][l] = (i * W + l) / D, t.from[i][l] = (i * W + l) % D;
    return t;
  }
};
template <class T, int D>
static constexpr auto table_of_components = Interleave<T, D>::components();
template <class T, int D>
static constexpr auto table_of_rows = Interleave<T, D>::rows();

template <class T, int D, const typename Interleave<T, D>::Table& table>
EQTP_INLINE void permute_all(const Vec<T>* in, Vec<T>* out) {
  using I = typename Simd<T>::I;
  for (int i = 0; i < D; ++i) {
    const I at = *reinterpret_cast<const I*>(table.at[i]), from = *reinterpret_cast<const I*>(table.from[i]);
    Vec<T> a = permute<T>(in[0], at);
    for (int q = 1; q < D; ++q) a = from == q ? permute<T>(in[q], at) : a;
    out[i] = a;
  }
}

// Component K of three, and vector K of the rows, by shuffles of two vectors
template <class T, int K, int... I>
EQTP_INLINE Vec<T> component_of_three(const Vec<T>* rows, Indices<I...>) {
  constexpr int W = Simd<T>::W;
  const Vec<T> t = EQTP_SHUFFLE(T, rows[0], rows[1], (3 * I + K < 2 * W ? 3 * I + K : 0)...);
  return EQTP_SHUFFLE(T, t, rows[2], (3 * I + K < 2 * W ? I : 3 * I + K - W)...);
}
template <class T, int K, int... I>
EQTP_INLINE Vec<T> rows_of_three(const Vec<T>* components, Indices<I...>) {
  constexpr int W = Simd<T>::W;
  const Vec<T> t = EQTP_SHUFFLE(T, components[0], components[1], ((K * W + I) % 3 % 2 * W + (K * W + I) / 3)...);
  return EQTP_SHUFFLE(T, t, components[2], ((K * W + I) % 3 == 2 ? W + (K * W + I) / 3 : I)...);
}

// rows [W, D] in D vectors -> components [D, W], and back
template <class T, int D>
EQTP_INLINE void deinterleave(const Vec<T>* rows, Vec<T>* components) {
  if constexpr (Interleave<T, D>::two_sources) {
    components[0] = component_of_three<T, 0>(rows, AllLanes<T>());
    components[1] = component_of_three<T, 1>(rows, AllLanes<T>());
    components[2] = component_of_three<T, 2>(rows, AllLanes<T>());
  } else {
    permute_all<T, D, table_of_components<T, D>>(rows, components);
  }
}
template <class T, int D>
EQTP_INLINE void interleave(const Vec<T>* components, Vec<T>* rows) {
  if constexpr (Interleave<T, D>::two_sources) {
    rows[0] = rows_of_three<T, 0>(components, AllLanes<T>());
    rows[1] = rows_of_three<T, 1>(components, AllLanes<T>());
    rows[2] = rows_of_three<T, 2>(components, AllLanes<T>());
  } else {
    permute_all<T, D, table_of_rows<T, D>>(components, rows);
  }
}

}  // namespace eqtp::EQTP_SIMD
#endif
