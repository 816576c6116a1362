// What every CUDA kernel of eqtp stands on. The same text is compiled by nvcc (csrc/*.cu), by NVRTC at run time
// (eqtp/backends/jit/runtime.py) and, for the tests of machines without a GPU, by a C++ compiler behind
// tests/cuda_cpu.h; so no header is included that one of the three lacks.
//
// Rules for kernels: launch through eqtp::launch, dynamic shared memory through EQTP_DYN_SHARED, PTX only in functions
// with a host branch, offsets into tensors in Index (64 bits), numbers in memory as T (float, double, f16, bf16) and in
// registers as Real<T> (float, double).
#pragma once

#ifdef __CUDACC__
#define EQTP_UNROLL _Pragma("unroll")
#define EQTP_UNROLL_8 _Pragma("unroll 8")
#define EQTP_LOOP _Pragma("unroll 1")
#else
#define EQTP_UNROLL
#define EQTP_UNROLL_8
#define EQTP_LOOP
#endif

namespace eqtp {

using Index = long long;
static_assert(sizeof(Index) == 8, "the int64 of torch");

constexpr unsigned ALL_LANES = 0xffffffffu;

// ----------------------------------------------------------------------------------------------------------------
//   numbers in memory
// Half precision is for storage only: read to float, written from float, rounded to nearest even. No toolkit header is
// needed.
struct f16 { unsigned short bits; };
struct bf16 { unsigned short bits; };

template <class T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <class T>
using Real = typename RealOf<T>::type;

__device__ __forceinline__ float as_float(unsigned bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  union {
    unsigned u;
    float f;
  } v = {bits};
  return v.f;
#endif
}
__device__ __forceinline__ unsigned as_bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  union {
    float f;
    unsigned u;
  } v = {x};
  return v.u;
#endif
}

__device__ __forceinline__ float read(float x) { return x; }
__device__ __forceinline__ double read(double x) { return x; }
__device__ __forceinline__ float read(bf16 x) { return as_float(unsigned(x.bits) << 16); }
__device__ __forceinline__ float read(f16 x) {
#ifdef __CUDA_ARCH__
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
  return f;
#else
  const unsigned sign = unsigned(x.bits & 0x8000u) << 16, e = x.bits >> 10 & 31u, m = x.bits & 1023u;
  if (e == 31) return as_float(sign | 0x7f800000u | m << 13);
  if (e == 0) return (sign ? -1.0f : 1.0f) * float(m) * as_float(0x33800000u);  // subnormal: m 2^-24
  return as_float(sign | (e + 112) << 23 | m << 13);
#endif
}
__device__ __forceinline__ void write(float* p, float x) { *p = x; }
__device__ __forceinline__ void write(double* p, double x) { *p = x; }
__device__ __forceinline__ void write(bf16* p, float x) {
  const unsigned b = as_bits(x);
  const bool nan = (b & 0x7fffffffu) > 0x7f800000u;
  p->bits = (unsigned short)(nan ? b >> 16 | 64u : (b + 0x7fffu + (b >> 16 & 1u)) >> 16);
}
__device__ __forceinline__ void write(f16* p, float x) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(x));
#else
  const unsigned b = as_bits(x), sign = b >> 16 & 0x8000u, a = b & 0x7fffffffu;
  unsigned h;
  if (a > 0x7f800000u) h = 0x7e00u;                   // NaN
  else if (a >= 0x477ff000u) h = 0x7c00u;             // rounds to infinity
  else if (a < 0x38800000u) h = as_bits(as_float(a) + 0.5f) - 0x3f000000u;  // subnormal: the addition rounds
  else h = (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13;
  p->bits = (unsigned short)(sign | h);
#endif
}

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }

// ----------------------------------------------------------------------------------------------------------------
//   compile time
template <int N>
struct Int {
  static constexpr int value = N;
  __device__ constexpr operator int() const { return N; }
};
template <int... I>
struct Ints {};
template <class A, class B>
struct Join;
template <int... A, int... B>
struct Join<Ints<A...>, Ints<B...>> {
  using type = Ints<A..., (int(sizeof...(A)) + B)...>;
};
template <int N>
struct Count {
  using type = typename Join<typename Count<N / 2>::type, typename Count<N - N / 2>::type>::type;
};
template <>
struct Count<0> {
  using type = Ints<>;
};
template <>
struct Count<1> {
  using type = Ints<0>;
};
template <int BEGIN, class F, int... I>
__device__ __forceinline__ void each(F&& f, Ints<I...>) {
  (f(Int<BEGIN + I>{}), ...);
}
// f(Int<BEGIN>), ..., f(Int<END - 1>): a loop that is unrolled whatever the optimiser thinks, with an index that is a
// constant
template <int BEGIN, int END, class F>
__device__ __forceinline__ void each(F&& f) {
  each<BEGIN>(f, typename Count<(END > BEGIN ? END - BEGIN : 0)>::type{});
}

// The address, of which the compiler knows nothing: what is added to it is added in the access, not kept in registers
// as a sum with what stays the same in a loop
template <class T>
__device__ __forceinline__ T* opaque(T* p) {
#ifdef __CUDA_ARCH__
  asm("" : "+l"(p));
#endif
  return p;
}
// *p, read again even if it has been read before
template <class T>
__device__ __forceinline__ T read_again(const T* p) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
  union {
    unsigned short half;
    unsigned word;
    unsigned long long words;
    T t;
  } v;
  if constexpr (sizeof(T) == 2) v.half = *reinterpret_cast<const volatile unsigned short*>(p);
  else if constexpr (sizeof(T) == 4) v.word = *reinterpret_cast<const volatile unsigned*>(p);
  else v.words = *reinterpret_cast<const volatile unsigned long long*>(p);
  return v.t;
}
// The compiler moves no access to memory across this: what is read is used before more is read
__device__ __forceinline__ void keep_order() {
#ifdef __CUDA_ARCH__
  asm volatile("" ::: "memory");
#endif
}

// ----------------------------------------------------------------------------------------------------------------
//   launch
#if defined(__CUDACC__) && !defined(__CUDACC_RTC__)
#define EQTP_DYN_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char eqtp_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(eqtp_dynamic_shared)
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream, A... a) {
  kernel<<<grid, block, shared, stream>>>(static_cast<P>(a)...);
}
#elif defined(__CUDACC_RTC__)
#define EQTP_DYN_SHARED(T, name)                                       \
  extern __shared__ __align__(16) unsigned char eqtp_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(eqtp_dynamic_shared)
#endif

}  // namespace eqtp
