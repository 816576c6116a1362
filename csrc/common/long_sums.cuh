// Sums of many float32 numbers on the GPU: in blocks, which are folded into a pair (total, error) that misses nothing
// (long_sums.h).
#pragma once
#include "common/device.cuh"

namespace eqtp {

constexpr int BLOCK_TERMS = 32;  // terms that are added one after another
template <class R>
constexpr bool has_long_sums = sizeof(R) == 4;

// total + error grows by `part`
template <class R>
__device__ __forceinline__ void fold(R part, R& total, R& error) {
  const R sum = total + part, added = sum - total;
  error += (total - (sum - added)) + (part - added);
  total = sum;
}
// The sum. Where the total is not finite the error is NaN.
template <class R>
__device__ __forceinline__ R folded(R total, R error) {
  return error == error ? total + error : total;
}

// Which block of a sum
struct BlockOfSum { bool first, last; };
// N sums of a thread, block by block. Numbered by what the compiler does not know, as in a loop that is not unrolled,
// they are in local memory: they take no registers and are touched only by sums of several blocks.
template <class R, int N>
struct LongSums {
  R total[N], error[N];
  // the sum, if this is the last block
  __device__ __forceinline__ R add(int n, R part, BlockOfSum block) {
    if (!has_long_sums<R> || (block.first && block.last)) return part;
    R sum = block.first ? R(0) : total[n], left = block.first ? R(0) : error[n];
    fold(part, sum, left);
    if (block.last) return folded(sum, left);
    total[n] = sum, error[n] = left;
    return sum;
  }
};

// N sums in registers. add(t, to) adds to them what the places t, t + step, .. < to give. It is called for t .. < end,
// at once or in blocks of TERMS places.
template <class R, int N, int TERMS = BLOCK_TERMS, class F>
__device__ __forceinline__ void sum_blocks(R* sum, Index t, Index end, int step, F&& add) {
  const Index length = Index(TERMS) * step;
  if (!has_long_sums<R> || end - t <= length) return add(t, end);
  LongSums<R, N> sums;
  EQTP_LOOP
  for (bool first = true; t < end; t += length, first = false) {
    const bool last = end - t <= length;
    add(t, last ? end : t + length);
    const int zero = int(end >> 62);  // which the compiler does not know: see LongSums
    each<0, N>([&](auto q) {
      const R so_far = sums.add(zero + q, sum[q], {first, last});
      sum[q] = last ? so_far : R(0);
    });
  }
}

// Places [begin, end) of a row of a CSR, whose terms `step` threads share, that are block n of its sum
struct Places {
  Index begin, end;
  BlockOfSum block;
};
template <class R>
__device__ __forceinline__ Places places_of(const Index* ptr, Index row, int n, int step) {
  const Index length = Index(BLOCK_TERMS) * step, begin = ptr[row] + n * length, end = ptr[row + 1];
  const bool last = !has_long_sums<R> || end - begin <= length;
  return {begin, last ? end : begin + length, {n == 0, last}};
}

}  // namespace eqtp
