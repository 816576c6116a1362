// Vectors of one SIMD level. A kernel file (<op>.cpp) is compiled once per level with EQTP_SIMD = base | avx2 | avx512
// (CMakeLists.txt), and once without EQTP_SIMD for its binding. Everything a level compiles lives in its own namespace
// and uses no inline function of the standard library, so that the linker can never mix code of two levels.
#pragma once
#include <cstdint>
#include <cstdlib>
#if defined(EQTP_SIMD) && EQTP_SIMD_BYTES >= 32
#include <immintrin.h>
#endif

namespace eqtp {

// A kernel is a template `void name(const Args<T>&)`, T float or double, of every level:
//   EQTP_DECLARE_KERNEL(name, Args) in its header;
//   EQTP_INSTANTIATE_KERNEL(name, Args) in the .cpp of a level, below the template's definition;
//   with_real(f64, [&](auto real) { EQTP_RUN(name, Args<decltype(real)>{..}); }) in its binding.
#define EQTP_DECLARE_KERNEL(name, Args) EQTP_DECLARE_LEVELS(template <class T> void name(const Args<T>&))
#define EQTP_INSTANTIATE_KERNEL(name, Args) \
  template void name(const Args<float>&);   \
  template void name(const Args<double>&)

// Declares `signature` once per level: EQTP_DECLARE_LEVELS(void fwd(const Args&)). EQTP_RUN calls this machine's
#if defined(__x86_64__)
#define EQTP_DECLARE_LEVELS(...)  \
  namespace base { __VA_ARGS__; } \
  namespace avx2 { __VA_ARGS__; } \
  namespace avx512 { __VA_ARGS__; }
#define EQTP_RUN(kernel, ...)                                \
  (::eqtp::simd_level() == 4   ? avx512::kernel(__VA_ARGS__) \
   : ::eqtp::simd_level() == 3 ? avx2::kernel(__VA_ARGS__)   \
                               : base::kernel(__VA_ARGS__))
#else
#define EQTP_DECLARE_LEVELS(...) \
  namespace base { __VA_ARGS__; }
#define EQTP_RUN(kernel, ...) base::kernel(__VA_ARGS__)
#endif

int simd_level();  // 1 plain, 3 AVX2+FMA, 4 AVX-512; capped by the environment variable EQTP_SIMD (read once)
inline int simd_bytes() { return simd_level() == 4 ? 64 : simd_level() == 3 ? 32 : 16; }

#ifndef EQTP_SIMD
// f(T()), T double or float
template <class F>
inline void with_real(bool f64, const F& f) {
  if (f64) f(double());
  else f(float());
}
#endif

#ifdef EQTP_SIMD
#define EQTP_INLINE static inline __attribute__((always_inline))

namespace EQTP_SIMD {

template <int BYTES>
struct Integer;
template <>
struct Integer<4> {
  using type = int32_t;
};
template <>
struct Integer<8> {
  using type = int64_t;
};

template <class T>
struct Simd {
  static constexpr int bytes = EQTP_SIMD_BYTES;
  static constexpr int W = bytes / sizeof(T);  // lanes
  typedef T V __attribute__((vector_size(EQTP_SIMD_BYTES), aligned(sizeof(T)), may_alias));
  using Index = typename Integer<sizeof(T)>::type;
  typedef Index I
      __attribute__((vector_size(EQTP_SIMD_BYTES), aligned(sizeof(T)), may_alias));  // masks and lane numbers
};
template <class T>
using Vec = typename Simd<T>::V;

template <class T>
static inline __attribute__((always_inline)) Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}
template <class T>
static inline __attribute__((always_inline)) void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}
// The first `lanes` < W lanes of a vector; nothing behind them is touched
template <class T>
EQTP_INLINE Vec<T> load_part(const T* p, int lanes) {
#if EQTP_SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm512_maskz_loadu_ps(__mmask16((1u << lanes) - 1), p));
  else return Vec<T>(_mm512_maskz_loadu_pd(__mmask8((1u << lanes) - 1), p));
#elif EQTP_SIMD_BYTES == 32
  typename Simd<T>::I mask;
  for (int l = 0; l < Simd<T>::W; ++l) mask[l] = l < lanes ? -1 : 0;
  if constexpr (sizeof(T) == 4) return Vec<T>(_mm256_maskload_ps(p, __m256i(mask)));
  else return Vec<T>(_mm256_maskload_pd(p, __m256i(mask)));
#else
  Vec<T> v{};
  for (int l = 0; l < lanes; ++l) v[l] = p[l];
  return v;
#endif
}
template <class T>
EQTP_INLINE void store_part(T* p, Vec<T> v, int lanes) {
#if EQTP_SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, __mmask16((1u << lanes) - 1), __m512(v));
  else _mm512_mask_storeu_pd(p, __mmask8((1u << lanes) - 1), __m512d(v));
#elif EQTP_SIMD_BYTES == 32
  typename Simd<T>::I mask;
  for (int l = 0; l < Simd<T>::W; ++l) mask[l] = l < lanes ? -1 : 0;
  if constexpr (sizeof(T) == 4) _mm256_maskstore_ps(p, __m256i(mask), __m256(v));
  else _mm256_maskstore_pd(p, __m256i(mask), __m256d(v));
#else
  for (int l = 0; l < lanes; ++l) p[l] = v[l];
#endif
}
// A store past the caches, for results that are too large to be found there again; p must be aligned to a vector. Ends
// with streaming_fence().
template <class T>
static inline __attribute__((always_inline)) void store_streaming(T* p, Vec<T> v) {
#if defined(__clang__)
  typedef T A __attribute__((vector_size(EQTP_SIMD_BYTES)));  // as Vec, aligned
  __builtin_nontemporal_store(A(v), reinterpret_cast<A*>(p));
#elif EQTP_SIMD_BYTES == 64
  if constexpr (sizeof(T) == 4) __builtin_ia32_movntps512(p, v);
  else __builtin_ia32_movntpd512(p, v);
#elif EQTP_SIMD_BYTES == 32
  if constexpr (sizeof(T) == 4) __builtin_ia32_movntps256(p, v);
  else __builtin_ia32_movntpd256(p, v);
#else
  store(p, v);
#endif
}
static inline __attribute__((always_inline)) void streaming_fence() {
#if EQTP_SIMD_BYTES >= 32
  __builtin_ia32_sfence();
#endif
}
// Hides where a pointer came from, so that the compiler keeps it in one register and addresses with constants.
template <class P>
static inline __attribute__((always_inline)) P* opaque(P* p) {
  asm("" : "+r"(p));
  return p;
}
// Lane l of the result is lane at[l] of v.
template <class T>
static inline __attribute__((always_inline)) Vec<T> permute(Vec<T> v, typename Simd<T>::I at) {
#ifdef __clang__
  Vec<T> r;
  for (int l = 0; l < Simd<T>::W; ++l) r[l] = v[at[l]];
  return r;
#else
  return __builtin_shuffle(v, at);
#endif
}
// Sum of the lanes, by halves: at each step lane l takes in lane l ^ n.
template <class T>
static inline __attribute__((always_inline)) T sum(Vec<T> v) {
  typedef typename Simd<T>::I I;
  I lane;
  for (int l = 0; l < Simd<T>::W; ++l) lane[l] = l;
  for (int n = Simd<T>::W / 2; n > 0; n /= 2) v += permute<T>(v, lane ^ n);
  return v[0];
}

}  // namespace EQTP_SIMD
#endif

}  // namespace eqtp
