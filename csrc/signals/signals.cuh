// Programs of products of functions on the sphere (eqtp/plans/signals.py), specialised: values at the points of a
// folded grid, sums of products of them, and back. The folding and its formulas: eqtp/math/sphere.py, `Fold`.
//
// A worker of a sample (tile.cuh) takes a row of the octant. It makes the row's parts of all fields (Legendre), then
// for each column the eight kinds (azimuth), by butterflies the values at the eight images, the terms, and back to sums
// over the columns; all this in registers. The sums of the rows meet in shared memory, and the workers share the
// components of the outputs (the projection, over the rows). Where there are more rows than workers this is done for as
// many rows as there are workers, again and again.
//
// Plan: what tile.cuh wants; WORKERS, UNROLL (the columns); ROWS, COLUMNS of the octant; per input LMAX_IN, per output
// LMAX_OUT, SUM (its first sum
//    over columns, and one more), TERM (its first term, and one more); per term C (coefficient), FACTOR (its first
//      factor, and one more), per factor
//    FIELD; FIELDS and per field OF (input), KIND (VALUE, DOWN, EAST), PART (its first part, and one more). Functions:
//      synthesis<field>(r, n) and, zero
//    for r >= ROWS, projection<output>(r, n), n = harmonic(lmax, m, l); azimuth(x, m, c).
#pragma once
#include "common/tile.cuh"

namespace eqtp {

enum FieldKind { VALUE, DOWN, EAST };  // f, df / dbeta, df / dalpha / sin(beta)

// Where degree l of order m >= 0 stands among those up to lmax; the parts and sums (x, m, y), y = l - m mod 2
constexpr __host__ __device__ int harmonic(int lmax, int m, int l) { return m * (lmax + 1) - m * (m - 1) / 2 + l - m; }
constexpr __host__ __device__ int slot(int x, int m, int y) { return m == 0 ? y : 4 * m - 2 + 2 * y + x; }

// f(x, m, y) for all slots
template <int LMAX, class F>
__device__ __forceinline__ void each_slot(F&& f) {
  EQTP_UNROLL
  for (int m = 0; m <= LMAX; ++m) {
    EQTP_UNROLL
    for (int y = 0; y < 2; ++y) {
      EQTP_UNROLL
      for (int x = 0; x < 2; ++x)
        if (m + y <= LMAX && x <= m) f(x, m, y);
    }
  }
}

// Kinds <-> values at the images: the Hadamard transform over x, the parity of m, and y
template <class R>
__device__ __forceinline__ void butterflies(R (&v)[8]) {
  EQTP_UNROLL
  for (int bit = 1; bit < 8; bit *= 2) {
    EQTP_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (i & bit) continue;
      const R a = v[i], b = v[i | bit];
      v[i] = a + b, v[i | bit] = a - b;
    }
  }
}

// Row r of all fields: part[x, m, y] = sum over k of legendre[m, y, k, r] f[x, m, y, k]. inputs: [components,
// stride(SAMPLES)] of the thread's sample
template <class Plan, class R>
__device__ __forceinline__ void make_parts(int r, const R* inputs, R (&part)[Plan::PART[Plan::FIELDS]]) {
  each<0, Plan::FIELDS>([&](auto f) {
    constexpr int LMAX = Plan::LMAX_IN[Plan::OF[f]], KIND = Plan::KIND[f], INPUT = Plan::FIRST_IN[Plan::OF[f]],
                  PART = Plan::PART[f];
    EQTP_UNROLL
    for (int m = KIND == EAST; m <= LMAX; ++m) {  // of order 0 nothing changes with alpha
      EQTP_UNROLL
      for (int l = 0; l <= LMAX; ++l) {
        if (l < m) continue;
        const R t = Plan::template synthesis<decltype(f)::value>(r, harmonic(LMAX, m, l));
        EQTP_UNROLL
        for (int x = 0; x < 2; ++x) {
          if (x > m) continue;
          const R a = inputs[(INPUT + l * l + l + (x ? -m : m)) * stride(Plan::SAMPLES)];
          R& sum = part[PART + slot(x, m, (l - m) % 2)];
          sum = l < m + 2 ? t * a : fused(t, a, sum);
        }
      }
    }
  });
}

// The values of a field at the images of column c
template <class Plan, int FIELD, class R>
__device__ __forceinline__ void make_values(int c, const R (&part)[Plan::PART[Plan::FIELDS]], R (&value)[8]) {
  constexpr int KIND = Plan::KIND[FIELD],
                FLIP = KIND == DOWN   ? 1
                       : KIND == EAST ? 4
                                      : 0,
                LOWEST = KIND == EAST ? 1 : 0, PART = Plan::PART[FIELD];
  EQTP_UNROLL
  for (int i = 0; i < 8; ++i) value[i] = 0;
  each_slot<Plan::LMAX_IN[Plan::OF[FIELD]]>([&](int x, int m, int y) {
    if (m < LOWEST) return;
    const R a = KIND != EAST ? Plan::azimuth(x, m, c) : x ? Plan::azimuth(0, m, c) : -Plan::azimuth(1, m, c);
    const R p = part[PART + slot(x, m, y)];
    R& sum = value[(4 * x + 2 * (m % 2) + y) ^ FLIP];
    sum = m < LOWEST + 2 ? a * p : fused(a, p, sum);
  });
  butterflies(value);
}

// The sum of the terms of output O at the images
template <class Plan, int O, class R>
__device__ __forceinline__ void add_terms(const R (&value)[Plan::FIELDS][8], R (&sum)[8]) {
  EQTP_UNROLL
  for (int i = 0; i < 8; ++i) sum[i] = 0;
  each<Plan::TERM[O], Plan::TERM[O + 1]>([&](auto t) {
    constexpr int LAST = Plan::FACTOR[t + 1] - 1, FIELD = Plan::FIELD[LAST];
    constexpr double C = Plan::C[t];
    constexpr bool BEGIN = t == Plan::TERM[O];
    EQTP_UNROLL
    for (int i = 0; i < 8; ++i) {
      R product = C;
      each<Plan::FACTOR[t], LAST>([&](auto j) {
        constexpr int OTHER = Plan::FIELD[j];
        product *= value[OTHER][i];
      });
      sum[i] = BEGIN ? product * value[FIELD][i] : fused(product, value[FIELD][i], sum[i]);
    }
  });
}

// One column of a row: adds what its points give to the sums over columns
template <class Plan, class R>
__device__ __forceinline__ void add_column(int c, const R (&part)[Plan::PART[Plan::FIELDS]],
                                           R (&sum)[Plan::SUM[Plan::OUT]]) {
  R value[Plan::FIELDS][8];
  each<0, Plan::FIELDS>([&](auto f) { make_values<Plan, decltype(f)::value>(c, part, value[f]); });
  each<0, Plan::OUT>([&](auto o) {
    constexpr int SUM = Plan::SUM[o];
    R v[8];
    add_terms<Plan, decltype(o)::value>(value, v);
    butterflies(v);
    each_slot<Plan::LMAX_OUT[o]>([&](int x, int m, int y) {
      R& s = sum[SUM + slot(x, m, y)];
      s = fused(R(Plan::azimuth(x, m, c)), v[4 * x + 2 * (m % 2) + y], s);
    });
  });
}

// Row r: the thread's sums over its columns, [SUM, stride(SAMPLES)]
template <class Plan, class R>
__device__ __forceinline__ void make_sums(int r, const R* inputs, R* sums) {
  constexpr int SUMS = Plan::SUM[Plan::OUT];
  R part[Plan::PART[Plan::FIELDS]], sum[SUMS];
  make_parts<Plan>(r, inputs, part);
  EQTP_UNROLL
  for (int n = 0; n < SUMS; ++n) sum[n] = 0;
  if constexpr (Plan::UNROLL) {
    EQTP_UNROLL
    for (int c = 0; c < Plan::COLUMNS; ++c) add_column<Plan>(c, part, sum);
  } else {
    EQTP_LOOP
    for (int c = 0; c < Plan::COLUMNS; ++c) add_column<Plan>(c, part, sum);
  }
  EQTP_UNROLL
  for (int n = 0; n < SUMS; ++n) sums[n * stride(Plan::SAMPLES)] = sum[n];
}

// The worker's components of output O: what rows row .. row + WORKERS - 1 give is written (row 0) or added. sums:
// [WORKERS, SUM, stride(SAMPLES)]
template <class Plan, int O, class R>
__device__ __forceinline__ void project(int row, int worker, const R* sums, R* outputs) {
  constexpr int LMAX = Plan::LMAX_OUT[O], FIRST = Plan::FIRST_OUT[O], SUM = Plan::SUM[O], SUMS = Plan::SUM[Plan::OUT];
  constexpr int STRIDE = stride(Plan::SAMPLES), WORKERS = Plan::WORKERS;
  for (int unit = worker; unit < 2 * LMAX + 1; unit += WORKERS) {  // all components (x, m, y) with this m and y
    const int m = unit / 2, y = unit % 2;
    R s[2][WORKERS];
    EQTP_UNROLL
    for (int i = 0; i < WORKERS; ++i) {
      const R* const from = sums + (i * SUMS + SUM) * STRIDE;
      const bool there = WORKERS == Plan::ROWS || row + i < Plan::ROWS;
      s[0][i] = there ? from[slot(0, m, y) * STRIDE] : R(0);
      s[1][i] = there && m > 0 ? from[slot(1, m, y) * STRIDE] : R(0);
    }
    EQTP_LOOP
    for (int l = m + y; l <= LMAX; l += 2) {
      R* const cosine = outputs + (FIRST + l * l + l + m) * STRIDE;
      R* const sine = cosine - 2 * m * STRIDE;
      R a = row ? *cosine : R(0), b = row ? *sine : R(0);
      EQTP_UNROLL
      for (int i = 0; i < WORKERS; ++i) {
        const R t = Plan::template projection<O>(row + i, harmonic(LMAX, m, l));
        a = fused(t, s[0][i], a), b = fused(t, s[1][i], b);
      }
      *cosine = a;
      if (m > 0) *sine = b;
    }
  }
}

// Any number of blocks of SAMPLES x WORKERS threads. channels: C; samples: B C. Shared memory:
//   Index begin[IN + OUT][SAMPLES]; Real<T> sums[WORKERS][SUM][stride(SAMPLES)], inputs[..][stride(SAMPLES)],
//     outputs[..][stride(SAMPLES)]
// and where each worker has one row, outputs stand in the place of the inputs.
template <class Plan, class T>
__device__ __forceinline__ void signals(Index channels, Index samples, const SampleRows<const T> (&in)[Plan::IN],
                                        const SampleRows<T> (&out)[Plan::OUT]) {
  using R = Real<T>;
  constexpr int SAMPLES = Plan::SAMPLES, STRIDE = stride(SAMPLES), ROWS = Plan::ROWS, WORKERS = Plan::WORKERS;
  constexpr int COMPONENTS = Plan::FIRST_IN[Plan::IN], SUMS = Plan::SUM[Plan::OUT];
  EQTP_DYN_SHARED(Index, begin);
  R* const sums = reinterpret_cast<R*>(begin + (Plan::IN + Plan::OUT) * SAMPLES);
  R* const inputs = sums + WORKERS * SUMS * STRIDE;
  R* const outputs = inputs + (WORKERS == ROWS ? 0 : COMPONENTS * STRIDE);
  const int sample = threadIdx.x % SAMPLES, worker = threadIdx.x / SAMPLES;
  for (Index first = Index(blockIdx.x) * SAMPLES; first < samples; first += Index(gridDim.x) * SAMPLES) {
    const int count = int(samples - first < SAMPLES ? samples - first : SAMPLES);
    load_tiles<Plan>(in, out, first, count, channels, begin, inputs);
    EQTP_LOOP
    for (int row = 0; row < ROWS; row += WORKERS) {
      if (WORKERS == ROWS || row + worker < ROWS)
        make_sums<Plan>(row + worker, inputs + sample, sums + worker * SUMS * STRIDE + sample);
      __syncthreads();
      each<0, Plan::OUT>(
          [&](auto o) { project<Plan, decltype(o)::value>(row, worker, sums + sample, outputs + sample); });
      if (row + WORKERS < ROWS) __syncthreads();
    }
    store_tiles<Plan>(out, count, begin, outputs);
  }
}

}  // namespace eqtp
