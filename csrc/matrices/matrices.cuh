// Sums of products of matrices that stand for functions on the sphere (eqtp/plans/matrices.py, whose docstrings have
// the mathematics), specialised.
//
// The workers of a sample (tile.cuh) share the work of each step, with what they make in shared memory: the inputs as
// matrices; then for each output the sum of its products, in blocks of ROWS x COLUMNS sums in registers; its symmetric
// and antisymmetric part; its components.
//
// Plan: what tile.cuh wants; WORKERS, UNROLL (tables become instructions); SIZE of the matrices; ROWS, COLUMNS, at most
// SIZE; PAIR_IN, PAIR_OUT (-1:
//    none); per output TERM (its first term, and one more); per term LEFT and RIGHT (inputs), LEFT_TURNED, RIGHT_TURNED
//      (whether transposed).
//    Sums n = sum over entries e of c(e) x[at(e)], of components: the parts at upper(q), lower(q) are the sums
//      TO[input] + 2 q, + 1; of parts: the
//    components are the sums BACK[output] + k. Functions: first(n) first entry of sum n, at(e), c(e).
#pragma once
#include "common/tile.cuh"

namespace eqtp {

// Places (a, b) and (b, a), a <= b, of pair q of a matrix of n rows: (a, a + d mod n), q = n d + a. n is odd: for d <=
// n / 2 these are all, each once
constexpr __host__ __device__ int across(int n, int q) { return (q % n + q / n) % n; }
constexpr __host__ __device__ int upper(int n, int q) {
  return q % n < across(n, q) ? q % n * n + across(n, q) : across(n, q) * n + q % n;
}
constexpr __host__ __device__ int lower(int n, int q) { return upper(n, q) % n * n + upper(n, q) / n; }

// SCALE n + OFFSET, a constant if n is one
template <int SCALE, int OFFSET, int N>
__device__ __forceinline__ Int<SCALE * N + OFFSET> affine(Int<N>) {
  return {};
}
template <int SCALE, int OFFSET>
__device__ __forceinline__ int affine(int n) {
  return SCALE * n + OFFSET;
}

// f(n) for the worker's n in [BEGIN, END)
template <class Plan, int BEGIN, int END, class F>
__device__ __forceinline__ void share(int worker, F&& f) {
  if constexpr (Plan::UNROLL) {
    each<BEGIN, END>([&](auto n) {
      if (n % Plan::WORKERS == worker) f(n);
    });
  } else {
    EQTP_LOOP
    for (int n = BEGIN + worker; n < END; n += Plan::WORKERS) f(n);
  }
}

// Sum n of the tables. x: [.., stride(SAMPLES)] of the thread's sample, as all below
template <class Plan, class R, class N>
__device__ __forceinline__ R gather(N n, const R* x) {
  constexpr int STRIDE = stride(Plan::SAMPLES);
  R sum = 0;
  if constexpr (Plan::UNROLL) {
    each<Plan::first(N::value), Plan::first(N::value + 1)>(
        [&](auto e) { sum = fused(R(Plan::c(e)), x[Plan::at(e) * STRIDE], sum); });
  } else {
    const int end = Plan::first(n + 1);
#pragma unroll 4
    for (int e = Plan::first(n); e < end; ++e) sum = fused(R(Plan::c(e)), x[Plan::at(e) * STRIDE], sum);
  }
  return sum;
}

template <class R>
__device__ __forceinline__ void halves(R& a, R& b) {
  const R sum = R(0.5) * (a + b);
  b = R(0.5) * (a - b), a = sum;
}

// Input I, and where it is the first of a pair the next one, to matrices: [IN, SIZE, SIZE]
template <class Plan, int I, class R>
__device__ __forceinline__ void make_matrices(int worker, const R* components, R* matrices) {
  constexpr int N = Plan::SIZE, STRIDE = stride(Plan::SAMPLES), TO = Plan::TO[I];
  constexpr int FIRST = Plan::FIRST_IN[I], COUNT = Plan::FIRST_IN[I + 1] - FIRST, MANY = I == Plan::PAIR_IN ? 2 : 1;
  share<Plan, 0, N*(N + 1) / 2>(worker, [&](auto q) {
    R u[2], v[2];
    EQTP_UNROLL
    for (int p = 0; p < MANY; ++p) {
      const R* const x = components + (FIRST + p * COUNT) * STRIDE;
      u[p] = gather<Plan>(affine<2, TO>(q), x), v[p] = gather<Plan>(affine<2, TO + 1>(q), x);
    }
    if constexpr (MANY == 2) halves(u[0], u[1]), halves(v[0], v[1]);
    EQTP_UNROLL
    for (int p = 0; p < MANY; ++p) {
      R* const m = matrices + (I + p) * N * N * STRIDE;
      m[upper(N, q) * STRIDE] = u[p] + v[p];
      if (q >= N) m[lower(N, q) * STRIDE] = u[p] - v[p];
    }
  });
}

// The sum of the terms of output O, [SIZE, SIZE]
template <class Plan, int O, class R>
__device__ __forceinline__ void multiply(int worker, const R* matrices, R* out) {
  constexpr int N = Plan::SIZE, STRIDE = stride(Plan::SAMPLES), ROWS = Plan::ROWS, COLUMNS = Plan::COLUMNS;
  constexpr int DOWN = (N + ROWS - 1) / ROWS, ACROSS = (N + COLUMNS - 1) / COLUMNS;
  EQTP_LOOP
  for (int n = worker; n < DOWN * ACROSS; n += Plan::WORKERS) {
    const int row = n / ACROSS * ROWS, column = n % ACROSS * COLUMNS;
    const int i = row < N - ROWS ? row : N - ROWS,
              j = column < N - COLUMNS ? column : N - COLUMNS;  // the last blocks overlap those before
    R sum[ROWS][COLUMNS] = {};
    each<Plan::TERM[O], Plan::TERM[O + 1]>([&](auto t) {
      constexpr bool LEFT_TURNED = Plan::LEFT_TURNED[t], RIGHT_TURNED = Plan::RIGHT_TURNED[t];
      constexpr int ROW = (LEFT_TURNED ? 1 : N) * STRIDE, COLUMN = (RIGHT_TURNED ? N : 1) * STRIDE;
      const R* left = matrices + Plan::LEFT[t] * N * N * STRIDE + i * ROW;
      const R* right = matrices + Plan::RIGHT[t] * N * N * STRIDE + j * COLUMN;
#pragma unroll 3
      for (int k = 0; k < N; ++k, left += (LEFT_TURNED ? N : 1) * STRIDE, right += (RIGHT_TURNED ? 1 : N) * STRIDE) {
        R b[COLUMNS];
        EQTP_UNROLL
        for (int c = 0; c < COLUMNS; ++c) b[c] = right[c * COLUMN];
        EQTP_UNROLL
        for (int r = 0; r < ROWS; ++r) {
          const R a = left[r * ROW];
          EQTP_UNROLL
          for (int c = 0; c < COLUMNS; ++c) sum[r][c] = fused(a, b[c], sum[r][c]);
        }
      }
    });
    EQTP_UNROLL
    for (int r = 0; r < ROWS; ++r) {
      EQTP_UNROLL
      for (int c = 0; c < COLUMNS; ++c)
        if (i + r >= row && j + c >= column) out[((i + r) * N + j + c) * STRIDE] = sum[r][c];
    }
  }
}

// A matrix to its parts, in place
template <class Plan, class R>
__device__ __forceinline__ void make_parts(int worker, R* matrix) {
  constexpr int N = Plan::SIZE, STRIDE = stride(Plan::SAMPLES);
  share<Plan, N, N*(N + 1) / 2>(worker, [&](auto q) {
    const R u = matrix[upper(N, q) * STRIDE], v = matrix[lower(N, q) * STRIDE];
    matrix[upper(N, q) * STRIDE] = u + v;
    matrix[lower(N, q) * STRIDE] = u - v;
  });
}

// Components of output O from its parts. Those of the first of a pair stay until the same worker has those of the
// second
template <class Plan, int O, class R>
__device__ __forceinline__ void make_components(int worker, const R* parts, R* components) {
  constexpr int STRIDE = stride(Plan::SAMPLES), FIRST = Plan::FIRST_OUT[O], COUNT = Plan::FIRST_OUT[O + 1] - FIRST,
                BACK = Plan::BACK[O];
  share<Plan, 0, COUNT>(worker, [&](auto k) {
    R sum = gather<Plan>(affine<1, BACK>(k), parts);
    if constexpr (Plan::PAIR_OUT >= 0 && O == Plan::PAIR_OUT + 1) halves(components[(FIRST - COUNT + k) * STRIDE], sum);
    components[(FIRST + k) * STRIDE] = sum;
  });
}

// Any number of blocks of SAMPLES x WORKERS threads. channels: C; samples: B C. Shared memory:
//   Index begin[IN + OUT][SAMPLES]; Real<T> matrices[IN + 1][SIZE][SIZE][stride(SAMPLES)],
//     components[..][stride(SAMPLES)]
// components: of the inputs, then of the outputs.
template <class Plan, class T>
__device__ __forceinline__ void matrices(Index channels, Index samples, const SampleRows<const T> (&in)[Plan::IN],
                                         const SampleRows<T> (&out)[Plan::OUT]) {
  using R = Real<T>;
  constexpr int SAMPLES = Plan::SAMPLES, STRIDE = stride(SAMPLES), SQUARE = Plan::SIZE * Plan::SIZE;
  EQTP_DYN_SHARED(Index, begin);
  R* const of_inputs = reinterpret_cast<R*>(begin + (Plan::IN + Plan::OUT) * SAMPLES);
  R* const sums = of_inputs + Plan::IN * SQUARE * STRIDE;
  R* const components = sums + SQUARE * STRIDE;
  const int sample = threadIdx.x % SAMPLES, worker = threadIdx.x / SAMPLES;
  for (Index first = Index(blockIdx.x) * SAMPLES; first < samples; first += Index(gridDim.x) * SAMPLES) {
    const int count = int(samples - first < SAMPLES ? samples - first : SAMPLES);
    load_tiles<Plan>(in, out, first, count, channels, begin, components);
    each<0, Plan::IN>([&](auto i) {
      constexpr int INPUT = decltype(i)::value;
      if constexpr (Plan::PAIR_IN < 0 || INPUT != Plan::PAIR_IN + 1)
        make_matrices<Plan, INPUT>(worker, components + sample, of_inputs + sample);
    });
    each<0, Plan::OUT>([&](auto o) {
      constexpr int OUTPUT = decltype(o)::value;
      __syncthreads();
      multiply<Plan, OUTPUT>(worker, of_inputs + sample, sums + sample);
      __syncthreads();
      make_parts<Plan>(worker, sums + sample);
      __syncthreads();
      make_components<Plan, OUTPUT>(worker, sums + sample, components + sample);
    });
    store_tiles<Plan>(out, count, begin, components);
  }
}

}  // namespace eqtp
