// Spherical harmonics on the GPU: values, gradient, and the derivative of both along a direction (formulas:
// eqtp/ops/spherical_harmonics.py).
//
// One thread has one point, a warp 32 points, whose rows of out and g are one piece of memory: they pass through the
// warp's tile in shared memory and between it and the tensors as 16-byte pieces. In one sweep over (m, l) each
// polynomial is used up where it is made, so nothing but the tile and one line of w is kept. Rows of a tile are an odd
// number of words apart: no two lanes at the same column share a bank.
//
// Bytes of a point, the least that can be moved (s: sizeof(T), C: columns): values s (3 + C), gradient s (6 + C),
// second order s (9 + 2 C).
#pragma once
#include "common/device.cuh"
#include "common/dual.cuh"

namespace eqtp {

enum HarmonicsPass { VALUES, GRADIENT, SECOND };  // out from xyz; gxyz from g; both along c

template <class T>
struct HarmonicsArrays {
  bool normalize;  // harmonics of xyz / |xyz| (0 for l > 0 at the zero vector), else r^l Y_l
  Index points;
  const T *xyz, *g, *c;  // [points, 3], [points, columns] (null: 0), [points, 3]
  Index xyz_row, xyz_col, g_row, c_row, c_col;  // strides, in elements; a row of g is contiguous
  T *out, *gxyz;  // [points, columns], [points, 3], contiguous; null: not wanted
  int tile, room;  // points of a warp's tile, at most 32; numbers of a warp in shared memory
};

// ----------------------------------------------------------------------------------------------------------------
//   constants and columns
// Three tables with one interface: at(n, i) is constant i (a, b, e, f) of the n-th (m, l); each_column(k, f) calls
// f(column) for every column that has component k = l l + l + m. LMAX: degree whose loops are unrolled, or -1.
constexpr __host__ __device__ int harmonics_rows(int lmax) { return (lmax + 1) * (lmax + 2) / 2; }

// All degrees 0 .. L in order; kernel arguments are operands of the arithmetic, without a load
template <class R, int L>
struct FixedTable {
  static constexpr int LMAX = L;
  R constants[harmonics_rows(L)][4];
  __device__ __forceinline__ int lmax() const { return L; }
  __device__ __forceinline__ int columns() const { return (L + 1) * (L + 1); }
  __device__ __forceinline__ R at(int n, int i) const { return constants[n][i]; }
  template <class F>
  __device__ __forceinline__ void each_column(int k, F&& f) const {
    f(k);
  }
};

// Any degrees, known at run time
template <class R>
struct GivenTable {
  static constexpr int LMAX = -1;
  const R* constants;  // [harmonics_rows(degree), 4]
  const int *start,
      // component k is in the columns column[start[k]] .. column[start[k + 1] - 1]; [(degree + 1)^2 + 1], [width]
      *column;
  int degree, width;
  __device__ __forceinline__ int lmax() const { return degree; }
  __device__ __forceinline__ int columns() const { return width; }
  __device__ __forceinline__ R at(int n, int i) const { return constants[4 * n + i]; }
  template <class F>
  __device__ __forceinline__ void each_column(int k, F&& f) const {
    for (int j = start[k]; j < start[k + 1]; ++j) f(column[j]);
  }
};

// Any degrees, known when the text is compiled. Plan: constants DEGREE, WIDTH, UNROLL and functions constant(n, i),
// start(k), column(j).
template <class R, class Plan>
struct PlanTable {
  static constexpr int LMAX = Plan::UNROLL ? Plan::DEGREE : -1;
  __device__ __forceinline__ int lmax() const { return Plan::DEGREE; }
  __device__ __forceinline__ int columns() const { return Plan::WIDTH; }
  __device__ __forceinline__ R at(int n, int i) const { return R(Plan::constant(n, i)); }
  template <int K, class F>
  __device__ __forceinline__ void each_column(Int<K>, F&& f) const {
    each<Plan::start(K), Plan::start(K + 1)>([&](auto j) { f(Plan::column(j)); });
  }
  template <class F>
  __device__ __forceinline__ void each_column(int k, F&& f) const {
    for (int j = Plan::start(k); j < Plan::start(k + 1); ++j) f(Plan::column(j));
  }
};

// f(m, l) for l from m to lmax within m from 0 to lmax
template <int LMAX, class F>
__device__ __forceinline__ void sweep(int lmax, F&& f) {
  if constexpr (LMAX >= 0) {
    each<0, LMAX + 1>([&](auto m) { each<decltype(m)::value, LMAX + 1>([&](auto l) { f(m, l); }); });
  } else {
    for (int m = 0; m <= lmax; ++m)
      for (int l = m; l <= lmax; ++l) f(m, l);
  }
}
template <int SIGN, int M, int L>
__device__ __forceinline__ Int<L * L + L + SIGN * M> component(Int<M>, Int<L>) {
  return {};
}
template <int SIGN>
__device__ __forceinline__ int component(int m, int l) {
  return l * l + l + SIGN * m;
}

// ----------------------------------------------------------------------------------------------------------------
//   numbers
// A number, or for the second order its derivative along c too
template <class R, int PASS>
struct NumberOf {
  using type = R;
};
template <class R>
struct NumberOf<R, SECOND> {
  using type = Dual<R>;
};
// One number for each degree: registers where the loops are unrolled, else shared memory, 32 apart
template <class N, int LMAX>
struct Line {
  N at[LMAX + 2];
  __device__ __forceinline__ Line(void*, int) {}
  __device__ __forceinline__ N& operator[](int l) { return at[l]; }
};
template <class N>
struct Line<N, -1> {
  N* at;
  __device__ __forceinline__ Line(void* room, int lane) : at(static_cast<N*>(room) + lane) {}
  __device__ __forceinline__ N& operator[](int l) { return at[32 * l]; }
};

#ifdef __CUDA_ARCH__
__device__ __forceinline__ float inverse_root(float x) { return rsqrtf(x); }
__device__ __forceinline__ double inverse_root(double x) { return rsqrt(x); }
#else
template <class R>
R inverse_root(R x) {
  return 1 / sqrt(x);
}
#endif

// 2^(1 - e) for a normal number x = 2^e 1.xxx; 0 for infinity and NaN
__device__ __forceinline__ float inverse_power(float x) { return as_float(0x7f800000u - (as_bits(x) & 0x7f800000u)); }
__device__ __forceinline__ double inverse_power(double x) {
  union {
    double f;
    unsigned long long u;
  } v = {x};
  v.u = 0x7ff0000000000000ull - (v.u & 0x7ff0000000000000ull);
  return v.f;
}

// ----------------------------------------------------------------------------------------------------------------
//   mathematics
// A point as the polynomials see it
template <class R, class N>
struct Place {
  N x, y, z, r2;  // of xyz, or of xyz / |xyz|
  N inv;  // 1 / |xyz| (normalize)

  __device__ __forceinline__ Place(const R* p, const R* c, bool normalize) {
    using M = Make<N>;
    if (!normalize) {
      x = M::number(p[0], c[0]), y = M::number(p[1], c[1]), z = M::number(p[2], c[2]);
      r2 = x * x + y * y + z * z;
      inv = M::number(1, 0);
      return;
    }
    // |x| + |y| + |z| has no square that over- or underflows; scaled by its power of two, the vector has none either
    const R size = fabs(p[0]) + fabs(p[1]) + fabs(p[2]);
    const bool null =
        size < R(sizeof(R) == 4 ? 0x1p-126
                                : 0x1p-1022);  // no normal number, no direction: values of l = 0 only, no derivative
    const R scale = null ? R(0) : inverse_power(size);
    R n[3] = {p[0] * scale, p[1] * scale, p[2] * scale};  // infinity and NaN become NaN
    const R unit = null ? R(0) : inverse_root(n[0] * n[0] + n[1] * n[1] + n[2] * n[2]), inverse = unit * scale;
    n[0] *= unit, n[1] *= unit, n[2] *= unit;
    const R along = n[0] * c[0] + n[1] * c[1] + n[2] * c[2];  // derivative of |xyz|
    x = M::number(n[0], (c[0] - n[0] * along) * inverse);
    y = M::number(n[1], (c[1] - n[1] * along) * inverse);
    z = M::number(n[2], (c[2] - n[2] * along) * inverse);
    r2 = M::number(null ? 0 : 1, 0);
    inv = M::number(inverse, -inverse * (inverse * along));
  }
};

// The thread's row [columns]: g before, the harmonics after. gradient [3]: of sum <g, harmonics>. w: room for what
// degree l has of g at one m.
template <int PASS, class R, class N, class Table>
__device__ __forceinline__ void evaluate(const Table& table, const Place<R, N>& t, bool normalize, R* row,
                                         Line<N, Table::LMAX>& w, N* gradient) {
  using M = Make<N>;
  const int lmax = table.lmax();
  const N none = M::number(0, 0);
  N c = M::number(1, 0), s = none, below_c = none, below_s = none;  // (z + i x)^m and (z + i x)^(m - 1)
  N p = none, below = none;  // P_lm and P_(l-1)m
  N gx = none, gy = none, gz = none, radial = none, u = none, v = none;
  sweep<Table::LMAX>(lmax, [&](auto m, auto l) {
    const int n = m * (lmax + 1) - m * (m - 1) / 2 + l - m;
    if (l == m) {
      below = none, p = M::number(table.at(n, 0), 0);
      if (m > 0) {
        below_c = c, below_s = s, u = none, v = none;
        if (m == 1) c = t.z, s = t.x;
        else c = t.z * below_c - t.x * below_s, s = t.z * below_s + t.x * below_c;
      }
    } else {
      N next = table.at(n, 0) * (t.y * p);
      if (l > m + 1) next = next + table.at(n, 1) * (t.r2 * below);
      below = p, p = next;
    }
    if constexpr (PASS != VALUES) {
      R gc = 0, gs = 0;
      table.each_column(component<1>(m, l), [&](int j) { gc += row[j]; });
      if (m > 0) table.each_column(component<-1>(m, l), [&](int j) { gs += row[j]; });
      const N now = m > 0 ? gc * c + gs * s : M::number(gc, 0);
      if (l > m) gy = gy + table.at(n, 2) * (below * now);
      if (m > 0) {
        u = u + gc * p, v = v + gs * p;
        if (l < lmax)
          radial = radial + table.at(n + m - lmax, 3) * (p * w[l + 1]);  // w of m - 1; constant of (m - 1, l + 1)
        if (l == lmax && m == 1) gz = gz + u, gx = gx + v;
        if (l == lmax && m > 1) {
          gz = gz + R(int(m)) * (u * below_c + v * below_s);
          gx = gx + R(int(m)) * (v * below_c - u * below_s);
        }
      }
      w[l] = now;
    }
    if constexpr (PASS != GRADIENT) {
      const N value = m > 0 ? p * c : p;
      table.each_column(component<1>(m, l), [&](int j) { row[j] = M::result(value); });
      if (m > 0) {
        const N other = p * s;
        table.each_column(component<-1>(m, l), [&](int j) { row[j] = M::result(other); });
      }
    }
  });
  if constexpr (PASS != VALUES) {
    gx = gx + t.x * radial, gz = gz + t.z * radial;
    if (normalize) {
      const N along = t.x * gx + t.y * gy + t.z * gz;
      gx = (gx - t.x * along) * t.inv, gy = (gy - t.y * along) * t.inv, gz = (gz - t.z * along) * t.inv;
    }
    gradient[0] = gx, gradient[1] = gy, gradient[2] = gz;
  }
}

// ----------------------------------------------------------------------------------------------------------------
//   memory
template <class T>
struct __align__(16) Piece {
  static constexpr int N = 16 / sizeof(T);
  T at[N];
};
template <class T>
__device__ __forceinline__ bool whole_pieces(const T* p) {
  return reinterpret_cast<size_t>(p) % 16 == 0;
}
// Where element e of rows without gaps stands in the tile
__device__ __forceinline__ int slot(int e, int columns, int stride) {
  return stride == columns ? e : e + e / columns * (stride - columns);
}

// The tile's rows -> `size` elements without gaps
template <class T>
__device__ __forceinline__ void store_rows(const Real<T>* tile, int stride, int columns, int size, int lane, T* to) {
  using R = Real<T>;
  constexpr int N = Piece<T>::N, M = Piece<R>::N;
  const int pieces = whole_pieces(to) ? size / N : 0;
#pragma unroll 1
  for (int i = lane; i < pieces; i += 32) {
    Piece<T> piece;
    Piece<R> from[N / M];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (stride != columns) from[k / M].at[k % M] = tile[slot(i * N + k, columns, stride)];
      else if (k % M == 0) from[k / M] = reinterpret_cast<const Piece<R>*>(tile)[(i * N + k) / M];
    }
#pragma unroll
    for (int k = 0; k < N; ++k) write(&piece.at[k], from[k / M].at[k % M]);
    reinterpret_cast<Piece<T>*>(to)[i] = piece;
  }
#pragma unroll 1
  for (int e = pieces * N + lane; e < size; e += 32) write(to + e, tile[slot(e, columns, stride)]);
}

// `size` elements in rows [columns], `row` apart -> the tile
template <class T>
__device__ __forceinline__ void load_rows(const T* from, Index row, int columns, int size, int lane, int stride,
                                          Real<T>* tile) {
  using R = Real<T>;
  constexpr int N = Piece<T>::N, M = Piece<R>::N;
  const int pieces = row == columns && whole_pieces(from) ? size / N : 0;
#pragma unroll(N < 8 ? 4 : 2)  // loads under way together
  for (int i = lane; i < pieces; i += 32) {
    const Piece<T> piece = reinterpret_cast<const Piece<T>*>(from)[i];
    Piece<R> to[N / M];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      to[k / M].at[k % M] = read(piece.at[k]);
      if (stride != columns) tile[slot(i * N + k, columns, stride)] = to[k / M].at[k % M];
      else if (k % M == M - 1) reinterpret_cast<Piece<R>*>(tile)[(i * N + k) / M] = to[k / M];
    }
  }
#pragma unroll 1
  for (int e = pieces * N + lane; e < size; e += 32)
    tile[slot(e, columns, stride)] = read(from[e / columns * row + e % columns]);
}

// ----------------------------------------------------------------------------------------------------------------
//   kernels
// How a kernel is launched: any number of blocks of whole warps, at most HARMONICS_THREADS threads. Each warp has
// `room` numbers Real<T> in shared memory, a multiple of 4: `tile` rows, harmonics_stride(columns) apart, and behind
// them, for gradients with LMAX = -1, 32 (lmax + 1) numbers N.
constexpr int HARMONICS_THREADS = 128;
constexpr __host__ __device__ int harmonics_stride(int columns) {
  return columns < 3 ? 3 : columns | 1;
}  // gxyz [3] passes through the tile too

template <class T, int PASS, class Table>
__device__ __forceinline__ void harmonics(const Table& table, const HarmonicsArrays<T>& a) {
  using R = Real<T>;
  using N = typename NumberOf<R, PASS>::type;
  EQTP_DYN_SHARED(R, shared);  // [warps, room]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int columns = table.columns(), stride = harmonics_stride(columns);
  R* const tile = shared + warp * a.room;  // [a.tile, stride]
  R* const row = tile + lane * stride;  // the thread's own, if lane < a.tile
  Line<N, Table::LMAX> w(tile + a.tile * stride, lane);
  for (Index at = (Index(blockIdx.x) * warps + warp) * a.tile; at < a.points; at += Index(gridDim.x) * warps * a.tile) {
    const int count = int(a.points - at < a.tile ? a.points - at : a.tile);
    N gradient[3];
    if constexpr (PASS != VALUES) {
      if (a.g) load_rows(a.g + at * a.g_row, a.g_row, columns, count * columns, lane, stride, tile);
      else
        for (int e = lane; e < count * stride; e += 32) tile[e] = 0;
      __syncwarp();
    }
    if (lane < count) {
      R p[3], c[3] = {};
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        p[k] = read(a.xyz[(at + lane) * a.xyz_row + k * a.xyz_col]);
        if constexpr (PASS == SECOND) c[k] = read(a.c[(at + lane) * a.c_row + k * a.c_col]);
      }
      const Place<R, N> place(p, c, a.normalize);
      evaluate<PASS>(table, place, a.normalize, row, w, gradient);
    }
    __syncwarp();
    if (PASS != GRADIENT && a.out) {
      store_rows(tile, stride, columns, count * columns, lane, a.out + at * columns);
      __syncwarp();
    }
    if (PASS != VALUES && a.gxyz) {
      if (lane < count)
        for (int k = 0; k < 3; ++k) tile[3 * lane + k] = Make<N>::result(gradient[k]);
      __syncwarp();
      store_rows(tile, 3, 3, 3 * count, lane, a.gxyz + 3 * at);
      __syncwarp();
    }
  }
}

template <class T, int PASS, class Table>
__global__ void __launch_bounds__(HARMONICS_THREADS, Table::LMAX < 0 ? 4 : 8)
    harmonics_kernel(Table table, HarmonicsArrays<T> a) {
#if defined(__CUDA_ARCH__) || !defined(__CUDACC__)  // when nvcc compiles the host's side it needs no body
  harmonics<T, PASS>(table, a);
#endif
}

// The same with the table in the text and arguments that any caller can pass
template <class T, int PASS, class Plan>
__global__ void __launch_bounds__(HARMONICS_THREADS)
    harmonics_plan_kernel(bool normalize, Index points, const T* xyz, Index xyz_row, Index xyz_col, const T* g,
                          Index g_row, const T* c, Index c_row, Index c_col, T* out, T* gxyz, int tile, int room) {
  const HarmonicsArrays<T> a{normalize, points, xyz,   g,   c,    xyz_row, xyz_col,
                             g_row,     c_row,  c_col, out, gxyz, tile,    room};
  harmonics<T, PASS>(PlanTable<Real<T>, Plan>{}, a);
}

}  // namespace eqtp
