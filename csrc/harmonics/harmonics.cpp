// Lanes are points: a tile of W points is computed in component-major order [(lmax + 1)^2, W] in the first-level cache
// and transposed in registers on its way to and from memory, whose rows are written once, whole. The second order is
// the same code on dual numbers (value, tangent along c). Every point is computed by the same instructions whatever the
// number of threads, so results do not depend on it.
#include "harmonics/harmonics.h"

#include "common/dual.h"
#include "common/parallel.h"
#include "common/transpose.h"

#ifdef EQTP_SIMD

namespace eqtp::EQTP_SIMD {

// ----------------------------------------------------------------------------------------------------------------
//   memory <-> lanes

template <class T>
EQTP_INLINE int column(const HarmonicsArgs<T>& a, int64_t j) {
  return a.column ? a.column[j] : int(j);
}

// [(lmax + 1)^2, W] -> `count` rows [columns]. A row shorter than a vector is written with what follows it, in order,
// as long as that is ours. The next tile's lines are asked for meanwhile: the order of these stores hides it from the
// hardware's own prefetch.
template <class T>
static void write_rows(const HarmonicsArgs<T>& a, const Vec<T>* tile, T* out, int count) {
  constexpr int W = Simd<T>::W;
  const int64_t n = a.columns;
  for (int64_t j = 0; j < n; j += W) {
    if (n >= W && j > n - W) j = n - W;
    Vec<T> r[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) r[i] = j + i < n ? tile[column(a, j + i)] : Vec<T>{};
    transpose<T, 1>(r);
    if (n >= W && count == W) {
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        store(out + p * n + j, r[p]);
        __builtin_prefetch(out + W * (n + j + p), 1);
      }
      continue;
    }
    T t[W * W];
#pragma GCC unroll 16
    for (int p = 0; p < W; ++p) store(t + p * W, r[p]);
    for (int p = 0; p < count; ++p) {
      if (n >= W || p * n + W <= count * n) store(out + p * n + j, load(t + p * W));
      else
        for (int64_t i = 0; i < n; ++i) out[p * n + i] = t[p * W + i];
    }
  }
}

// `count` rows [columns], `row` apart -> [(lmax + 1)^2, W]; columns of the same component are summed. Nothing behind
// the last row is read.
template <class T>
static void read_rows(const HarmonicsArgs<T>& a, const T* g, int count, Vec<T>* tile) {
  constexpr int W = Simd<T>::W;
  const int64_t n = a.columns, end = (count - 1) * a.g_row + n;
  if (a.column)
    for (int i = 0; i < (a.lmax + 1) * (a.lmax + 1); ++i) tile[i] = Vec<T>{};
  for (int64_t j = 0; j < n; j += W) {
    const int64_t done = j;
    if (n >= W && j > n - W) j = n - W;
    Vec<T> r[W];
    if (n >= W && count == W) {
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) {
        r[p] = load(g + p * a.g_row + j);
        __builtin_prefetch(g + W * (a.g_row + j + p), 0);
      }
    } else {
      T t[W * W];
      for (int p = 0; p < W; ++p) {
        store(t + p * W, Vec<T>{});
        if (p >= count) continue;
        if (n >= W || p * a.g_row + W <= end) store(t + p * W, load(g + p * a.g_row + j));
        else
          for (int64_t i = 0; i < n; ++i) t[p * W + i] = g[p * a.g_row + i];
      }
#pragma GCC unroll 16
      for (int p = 0; p < W; ++p) r[p] = load(t + p * W);
    }
    transpose<T, 1>(r);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
      if (j + i >= n) continue;
      if (!a.column) tile[j + i] = r[i];
      else if (j + i >= done) tile[a.column[j + i]] += r[i];
    }
  }
}

// W points in a row in memory, 3 vectors -> component K of each; and vector K of that row from the components
template <class T, int K, int... I>
EQTP_INLINE Vec<T> component(const Vec<T>* row, Indices<I...>) {
  constexpr int W = Simd<T>::W;
  const Vec<T> t = EQTP_SHUFFLE(T, row[0], row[1], (3 * I + K < 2 * W ? 3 * I + K : 0)...);
  return EQTP_SHUFFLE(T, t, row[2], (3 * I + K < 2 * W ? I : 3 * I + K - W)...);
}
template <class T, int K, int... I>
EQTP_INLINE Vec<T> third(const Vec<T>* x, Indices<I...>) {
  constexpr int W = Simd<T>::W;
  const Vec<T> t = EQTP_SHUFFLE(T, x[0], x[1], ((K * W + I) % 3 % 2 * W + (K * W + I) / 3)...);
  return EQTP_SHUFFLE(T, t, x[2], ((K * W + I) % 3 == 2 ? W + (K * W + I) / 3 : I)...);
}

// `count` points -> their components; nothing behind the last one is read
template <class T>
EQTP_INLINE void read_vectors(const T* p, int64_t row, int64_t col, int count, Vec<T>* x) {
  constexpr int W = Simd<T>::W;
  if (row == 3 && col == 1 && count == W) {
    const Vec<T> v[3] = {load(p), load(p + W), load(p + 2 * W)};
    x[0] = component<T, 0>(v, AllLanes<T>()), x[1] = component<T, 1>(v, AllLanes<T>()),
    x[2] = component<T, 2>(v, AllLanes<T>());
    return;
  }
  for (int k = 0; k < 3; ++k) {
    T t[W];
    for (int i = 0; i < W; ++i) t[i] = i < count ? p[i * row + k * col] : T(0);
    x[k] = load(t);
  }
}
template <class T>
EQTP_INLINE void write_vectors(const Vec<T>* x, int count, T* p) {
  constexpr int W = Simd<T>::W;
  T t[3 * W];
  T* const to = count == W ? p : t;
  store(to, third<T, 0>(x, AllLanes<T>())), store(to + W, third<T, 1>(x, AllLanes<T>())),
      store(to + 2 * W, third<T, 2>(x, AllLanes<T>()));
  if (count < W)
    for (int i = 0; i < 3 * count; ++i) p[i] = t[i];
}

// ----------------------------------------------------------------------------------------------------------------
//   mathematics
// One tile of vectors, and all that is made from it.
template <class T, class N>
struct PointTile {
  N x, y, z, r2;  // what the polynomials are evaluated at: xyz or xyz / |xyz|
  N inv;  // 1 / |xyz| (normalize)
  N *p, *c, *s;  // P_lm in the order of the constants; z + i x to the powers 0 .. lmax
  Vec<T>* components;  // [(lmax + 1)^2, W] values, or cotangents g
};

template <class T, class N>
EQTP_INLINE void locate(PointTile<T, N>& t, const Vec<T>* x, const Vec<T>* c, bool normalize) {
  constexpr int W = Simd<T>::W;
  using Make = Number<T, N>;
  if (!normalize) {
    t.x = Make::make(x[0], c[0]), t.y = Make::make(x[1], c[1]), t.z = Make::make(x[2], c[2]);
    t.r2 = t.x * t.x + t.y * t.y + t.z * t.z;
    t.inv = Make::make(Vec<T>{} + T(1), Vec<T>{});
    return;
  }
  const Vec<T> zero{}, one = zero + T(1);
  Vec<T> size = zero;  // |x| + |y| + |z|; scaled by the inverse of its power of 2, neither overflow nor underflow below
  for (int k = 0; k < 3; ++k) size += x[k] < zero ? -x[k] : x[k];
  using I = typename Simd<T>::I;
  const I exponent = I(size) & I(zero + T(__builtin_inf()));
  const I null = exponent == I{};
  const Vec<T> scale =
      null ? zero
           : Vec<T>(I(zero + T(__builtin_inf())) - exponent);  // a power of 2, so exact; infinity and NaN give NaN
  Vec<T> u[3], n2 = zero;
  for (int k = 0; k < 3; ++k) u[k] = x[k] * scale, n2 += u[k] * u[k];
  T root[W];
  store(root, null ? one : n2);
  for (int i = 0; i < W; ++i)
    root[i] = sizeof(T) == 4 ? T(__builtin_sqrtf(float(root[i]))) : T(__builtin_sqrt(root[i]));
  const Vec<T> unit = null ? zero : one / load(root), inv = unit * scale;
  for (int k = 0; k < 3; ++k) u[k] *= unit;
  const Vec<T> along = u[0] * c[0] + u[1] * c[1] + u[2] * c[2];  // derivative of |x|
  t.x = Make::make(u[0], (c[0] - u[0] * along) * inv);
  t.y = Make::make(u[1], (c[1] - u[1] * along) * inv);
  t.z = Make::make(u[2], (c[2] - u[2] * along) * inv);
  t.r2 = Make::make(null ? zero : one, zero);
  t.inv = Make::make(inv, -inv * (inv * along));
}

template <class T, class N>
EQTP_INLINE void polynomials(const HarmonicsConstants<T>* k, int lmax, PointTile<T, N>& t) {
  using Make = Number<T, N>;
  const Vec<T> zero{};
  N* p = t.p;
  t.c[0] = Make::make(zero + T(1), zero), t.s[0] = Make::make(zero, zero);
  if (lmax) t.c[1] = t.z, t.s[1] = t.x;
  for (int m = 2; m <= lmax; ++m)
    t.c[m] = t.z * t.c[m - 1] - t.x * t.s[m - 1], t.s[m] = t.z * t.s[m - 1] + t.x * t.c[m - 1];
  for (int m = 0; m <= lmax; ++m) {
    const T first = k->a;
    N p2 = Make::make(zero + first, zero), p1 = p2;
    *p++ = p2, ++k;
    if (m < lmax) p1 = (k->a * first) * t.y, *p++ = p1, ++k;
    for (int l = m + 2; l <= lmax; ++l, ++k) {
      const N q = k->a * (t.y * p1) + k->b * (t.r2 * p2);
      p2 = p1, p1 = q, *p++ = q;
    }
  }
}

template <class T, class N>
EQTP_INLINE void values(int lmax, PointTile<T, N>& t) {
  using Make = Number<T, N>;
  const N* p = t.p;
  for (int l = 0; l <= lmax; ++l) t.components[l * l + l] = Make::result(*p++);
  for (int m = 1; m <= lmax; ++m)
    for (int l = m; l <= lmax; ++l, ++p) {
      t.components[l * l + l + m] = Make::result(*p * t.c[m]);
      t.components[l * l + l - m] = Make::result(*p * t.s[m]);
    }
}

// sum_lm g_lm grad S_lm at (x, y, z), then through the normalisation
template <class T, class N>
EQTP_INLINE void gradient(const HarmonicsConstants<T>* k, int lmax, PointTile<T, N>& t, bool normalize, Vec<T>* out) {
  using Make = Number<T, N>;
  const N none = Make::make(Vec<T>{}, Vec<T>{});
  N gx = none, gy = none, gz = none, radial = none;
  for (int l = 1; l <= lmax; ++l) {  // m = 0
    const Vec<T> gc = t.components[l * l + l];
    gy = gy + t.p[l - 1] * (k[l].e * gc);
    if (l > 1) radial = radial + t.p[lmax + l - 1] * (k[l].f * gc);
  }
  const N* p = t.p;
  for (int m = 1; m <= lmax; ++m) {
    const int count = lmax - m + 1;  // degrees of this m
    k += count + 1, p += count + 1;
    const N c = t.c[m], s = t.s[m];
    const T first = k[0].a, next = count > 2 ? k[count].a : T(0);  // P_mm, P_(m+1)(m+1): constants
    const Vec<T>* const g = t.components + m * m + m;
    N u = Make::make(first * g[m], Vec<T>{}), v = Make::make(first * g[-m], Vec<T>{});
    for (int i = 1; i < count; ++i) {
      const int l = m + i, at = l * l + l - m * m - m;
      const Vec<T> gc = g[at + m], gs = g[at - m];
      const N w = c * gc + s * gs;
      u = u + p[i] * gc, v = v + p[i] * gs;
      gy = gy + (i == 1 ? (k[i].e * first) * w : k[i].e * (p[i - 1] * w));
      if (i > 1) radial = radial + (i == 2 ? (k[i].f * next) * w : k[i].f * (p[count + i - 2] * w));
    }
    gz = gz + (m == 1 ? u : T(m) * (u * t.c[m - 1] + v * t.s[m - 1]));
    gx = gx + (m == 1 ? v : T(m) * (v * t.c[m - 1] - u * t.s[m - 1]));
  }
  gx = gx + t.x * radial, gz = gz + t.z * radial;
  if (normalize) {
    const N along = t.x * gx + t.y * gy + t.z * gz;
    gx = (gx - t.x * along) * t.inv, gy = (gy - t.y * along) * t.inv, gz = (gz - t.z * along) * t.inv;
  }
  out[0] = Make::result(gx), out[1] = Make::result(gy), out[2] = Make::result(gz);
}

// ----------------------------------------------------------------------------------------------------------------
//   passes
template <class T, class N, int LMAX>
static void tiles(const HarmonicsArgs<T>& a, int64_t begin, int64_t end, T* workspace) {
  constexpr int W = Simd<T>::W;
  const int lmax = LMAX < 0 ? a.lmax : LMAX, size = (lmax + 1) * (lmax + 1);
  PointTile<T, N> t;
  t.components = reinterpret_cast<Vec<T>*>(workspace);
  t.p = reinterpret_cast<N*>(t.components + size);
  t.c = t.p + (lmax + 1) * (lmax + 2) / 2;
  t.s = t.c + lmax + 1;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t at = tile * W;
    const int count = a.points - at < W ? int(a.points - at) : W;
    Vec<T> x[3], c[3]{}, g[3];
    read_vectors(a.xyz + at * a.xyz_row, a.xyz_row, a.xyz_col, count, x);
    if (a.c) read_vectors(a.c + at * a.c_row, a.c_row, a.c_col, count, c);
    locate<T, N>(t, x, c, a.normalize);
    polynomials<T, N>(a.constants, lmax, t);
    if (a.gxyz) {
      read_rows(a, a.g + at * a.g_row, count, t.components);
      gradient<T, N>(a.constants, lmax, t, a.normalize, g);
      write_vectors(g, count, a.gxyz + 3 * at);
    }
    if (a.out) {
      values<T, N>(lmax, t);
      write_rows(a, t.components, a.out + at * a.columns, count);
    }
  }
}

template <class T, class N>
static void harmonics_of(const HarmonicsArgs<T>& a) {
  constexpr int W = Simd<T>::W;
  const int64_t count = (a.points + W - 1) / W, size = int64_t(a.lmax + 1) * (a.lmax + 1);
  const int64_t least = 1 + 4096 / size;  // tiles that are worth a thread
  const int threads = int(count / least < a.threads ? count / least : a.threads);
  const int64_t workspace = (size + (size + 3 * a.lmax + 2) * (sizeof(N) / sizeof(Vec<T>))) * W;
  Scratch workspaces(sizeof(T) * size_t(workspace) * size_t(threads < 1 ? 1 : threads));
  if (a.out) advise_huge(a.out, size_t(a.points * a.columns) * sizeof(T));
  auto body = [&](int thread, int n) {
    const Range r = share(count, thread, n);
    T* const own = workspaces.as<T>() + workspace * thread;
    switch (a.lmax) {  // the usual degrees have code of their own
      case 0: return tiles<T, N, 0>(a, r.begin, r.end, own);
      case 1: return tiles<T, N, 1>(a, r.begin, r.end, own);
      case 2: return tiles<T, N, 2>(a, r.begin, r.end, own);
      case 3: return tiles<T, N, 3>(a, r.begin, r.end, own);
      case 4: return tiles<T, N, 4>(a, r.begin, r.end, own);
      case 6: return tiles<T, N, 6>(a, r.begin, r.end, own);
      case 8: return tiles<T, N, 8>(a, r.begin, r.end, own);
      default: return tiles<T, N, -1>(a, r.begin, r.end, own);
    }
  };
  parallel(threads, body);
}
template <class T>
static void harmonics(const HarmonicsArgs<T>& a) {
  if (a.c) harmonics_of<T, Dual<T>>(a);
  else harmonics_of<T, Vec<T>>(a);
}
void harmonics_f32(const HarmonicsArgs<float>& a) { harmonics(a); }
void harmonics_f64(const HarmonicsArgs<double>& a) { harmonics(a); }

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include <pybind11/stl.h>

#include "common/module.h"

namespace py = pybind11;
namespace eqtp {

using P = uintptr_t;  // address of a tensor's first element; 0: absent

// What a kernel needs to know of the degrees and the normalisation
struct Harmonics {
  Harmonics(int lmax, int64_t columns, const std::vector<int32_t>& column, const std::vector<double>& constants)
      : lmax(lmax), columns(columns), column(column), f64(constants), f32(constants.begin(), constants.end()) {}
  template <class T>
  const HarmonicsConstants<T>* constants() const {
    if constexpr (sizeof(T) == 4) return reinterpret_cast<const HarmonicsConstants<T>*>(f32.data());
    else return reinterpret_cast<const HarmonicsConstants<T>*>(f64.data());
  }
  int lmax;
  int64_t columns;
  std::vector<int32_t> column;
  std::vector<double> f64;
  std::vector<float> f32;
};

template <class T>
static HarmonicsArgs<T> arguments(const Harmonics& h, bool normalize, int64_t points, P xyz, int64_t xyz_row,
                                  int64_t xyz_col, P g, int64_t g_row, P c, int64_t c_row, int64_t c_col, P out, P gxyz,
                                  int threads) {
  auto data = [](P p) { return reinterpret_cast<T*>(p); };
  return {h.lmax,    h.constants<T>(),
          h.columns, h.column.empty() ? nullptr : h.column.data(),
          normalize, points,
          data(xyz), data(g),
          data(c),   xyz_row,
          xyz_col,   g_row,
          c_row,     c_col,
          data(out), data(gxyz),
          threads};
}
static void run(const Harmonics& h, bool normalize, int64_t points, P xyz, int64_t xyz_row, int64_t xyz_col, P g,
                int64_t g_row, P c, int64_t c_row, int64_t c_col, P out, P gxyz, bool f64, int threads) {
  py::gil_scoped_release nogil;
  if (f64)
    EQTP_PICK(harmonics_f64)(
        arguments<double>(h, normalize, points, xyz, xyz_row, xyz_col, g, g_row, c, c_row, c_col, out, gxyz, threads));
  else
    EQTP_PICK(harmonics_f32)(
        arguments<float>(h, normalize, points, xyz, xyz_row, xyz_col, g, g_row, c, c_row, c_col, out, gxyz, threads));
}

EQTP_BINDING(define_spherical_harmonics) {
  py::class_<Harmonics>(m, "Harmonics")
      .def(py::init<int, int64_t, const std::vector<int32_t>&, const std::vector<double>&>());
  m.def("spherical_harmonics", &run);
}

}  // namespace eqtp
#endif
