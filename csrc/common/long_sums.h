// Sums of many float32 numbers. One after another they lose digits: 1e6 times 0.1 are 100958, and 2^24 + 1 is 2^24. A
// sum of more than BLOCK_TERMS terms is therefore made of blocks, each added as ever, which are folded into a pair
// (total, error) that misses nothing (TwoSum; Knuth, The Art of Computer Programming 2, 4.2.2). The error of the sum is
// that of one block, however many there are: half of BLOCK_TERMS roundings, 1e-6, where all terms are alike; twice that
// at worst. Shorter sums, and float64, are added as ever.
#pragma once
#include "common/simd.h"

namespace eqtp {

constexpr int BLOCK_TERMS = 32;  // terms that are added one after another
template <class T>
constexpr bool has_long_sums = sizeof(T) == 4;

#ifdef EQTP_SIMD
namespace EQTP_SIMD {

// total + error grows by `part`
template <class V>
EQTP_INLINE void fold(V part, V& total, V& error) {
  const V sum = total + part, added = sum - total;
  error += (total - (sum - added)) + (part - added);
  total = sum;
}
// The sum. Where the total is not finite the error is NaN.
template <class V>
EQTP_INLINE V folded(V total, V error) {
  return error == error ? total + error : total;
}

// Calls row(t) for t in [first, last), which adds to sum [n]; then sum is what all of them have added. n <= N
template <class T, int N, class V, class F>
EQTP_INLINE void sum_rows(int64_t first, int64_t last, V* sum, int n, F&& row) {
  const auto block = [&](int64_t begin, int64_t end) __attribute__((always_inline)) {
    for (int q = 0; q < n; ++q) sum[q] = V{};
    for (int64_t t = begin; t < end; ++t) row(t);
  };
  if (!has_long_sums<T> || last - first <= BLOCK_TERMS) return block(first, last);
  V total[N]{}, error[N]{};
  for (int64_t t = first; t < last; t += BLOCK_TERMS) {
    block(t, last - t < BLOCK_TERMS ? last : t + BLOCK_TERMS);
    for (int q = 0; q < n; ++q) fold(sum[q], total[q], error[q]);
  }
  for (int q = 0; q < n; ++q) sum[q] = folded(total[q], error[q]);
}

// The same for rows [n] in memory, n a multiple of the SIMD width. After the first block: total = part, part = 0
template <class T>
EQTP_INLINE void begin_row(T* part, T* total, int64_t n) {
  for (int64_t i = 0; i < n; i += Simd<T>::W) store(total + i, load(part + i)), store(part + i, Vec<T>{});
}
// After another: total + error grows by part, part = 0. second: there is no error yet
template <class T>
EQTP_INLINE void fold_row(T* part, T* total, T* error, int64_t n, bool second) {
  for (int64_t i = 0; i < n; i += Simd<T>::W) {
    Vec<T> sum = load(total + i), left = second ? Vec<T>{} : load(error + i);
    fold(load(part + i), sum, left);
    store(total + i, sum), store(error + i, left), store(part + i, Vec<T>{});
  }
}
// At the end: part = part + total + error; second: there is no error
template <class T>
EQTP_INLINE void end_row(T* part, const T* total, const T* error, int64_t n, bool second) {
  for (int64_t i = 0; i < n; i += Simd<T>::W) {
    Vec<T> sum = load(total + i), left = second ? Vec<T>{} : load(error + i);
    fold(load(part + i), sum, left);
    store(part + i, folded(sum, left));
  }
}

}  // namespace EQTP_SIMD
#endif

}  // namespace eqtp
