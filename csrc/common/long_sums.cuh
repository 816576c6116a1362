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

// N sums in registers. add(t, to) adds to them what the places t, t + step, .. < to give. It is called for t .. < end,
// at once or in blocks of TERMS places.
template <class R, int N, int TERMS = BLOCK_TERMS, class F>
__device__ __forceinline__ void sum_blocks(R* sum, Index t, Index end, int step, F&& add) {
  const Index length = Index(TERMS) * step;
  if (!has_long_sums<R> || end - t <= length) return add(t, end);
  R total[N], error[N];
  each<0, N>([&](auto q) { total[q] = error[q] = 0; });
  EQTP_LOOP
  for (; t < end; t += length) {
    add(t, end - t < length ? end : t + length);
    each<0, N>([&](auto q) { fold(sum[q], total[q], error[q]), sum[q] = 0; });
  }
  each<0, N>([&](auto q) { sum[q] = folded(total[q], error[q]); });
}

// Which block of a sum
struct BlockOfSum { bool first, last; };
// N sums of a thread, block by block. Numbered by a loop that is not unrolled they are in local memory, take no
// registers and are touched only by sums of several blocks.
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
