// Kernels whose lanes are samples: rows of numbers to and from vectors, tile by tile.
#pragma once
#include "common/parallel.h"
#include "common/transpose.h"

namespace eqtp {

// A tensor [b, c, n] of samples z = b * count_c + c, of n numbers in a row each
template <class T>
struct Samples {
  T* data;
  int64_t stride_b, stride_c, n;
  const T* end;  // behind its last number
};

}  // namespace eqtp

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

// Where the rows of a tile of `count` samples begin, from sample z on; the lanes behind the last sample repeat it.
template <class T>
EQTP_INLINE void find_rows(const Samples<T>& s, int64_t count_c, int64_t z, int count, T** rows) {
  int64_t b = z / count_c, c = z % count_c;
  for (int l = 0; l < Simd<T>::W; ++l) {
    rows[l] = s.data + b * s.stride_b + c * s.stride_c;
    if (l + 1 < count && ++c == count_c) c = 0, ++b;
  }
}

// Samples from z on -> tile[at[i]], the numbers i of all of them. Nothing behind the end of the tensor is read.
template <class T>
static void read_samples(const Samples<T>& s, int64_t count_c, int64_t z, int count, const int32_t* at, Vec<T>* tile) {
  constexpr int W = Simd<T>::W;
  T* rows[W];
  find_rows(s, count_c, z, count, rows);
  bool whole = true;
  for (int l = 0; l < W; ++l) whole &= rows[l] + W <= s.end;
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
static void write_samples(const Samples<T>& s, int64_t count_c, int64_t z, int count, const int32_t* at,
                          const Vec<T>* tile) {
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

// For each tile of up to W of `count` samples, from z on: run(tile, z, samples), with tile = make(work), a thread's
// `workspace` vectors of work space.
template <class T, class Make, class Run>
static void each_sample_tile(int64_t count, int threads, int64_t workspace, const Samples<T>* outputs, int num_outputs,
                             const Make& make, const Run& run) {
  constexpr int W = Simd<T>::W;
  const int64_t tiles = (count + W - 1) / W;
  if (tiles < threads) threads = int(tiles);
  Scratch workspaces(sizeof(Vec<T>) * size_t(workspace) * size_t(threads < 1 ? 1 : threads));
  for (int o = 0; o < num_outputs; ++o)
    if (outputs[o].stride_c == outputs[o].n) advise_huge(outputs[o].data, size_t(count * outputs[o].n) * sizeof(T));
  auto body = [&](int thread, int n) {
    const auto tile = make(workspaces.as<Vec<T>>() + workspace * thread);
    const Range mine = share(tiles, thread, n);
    for (int64_t t = mine.begin; t < mine.end; ++t) run(tile, t * W, int(count - t * W < W ? count - t * W : W));
  };
  parallel(threads, body);
}

}  // namespace eqtp::EQTP_SIMD

#endif
