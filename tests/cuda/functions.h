// The vectors and functions that CUDA gives to kernels, for cuda_cpu.h, which includes this.
#pragma once

#define EQTP_VECTORS(T, name)                                \
  struct alignas(2 * sizeof(T)) name##2 { T x, y; };         \
  struct alignas(16) name##4 { T x, y, z, w; };              \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EQTP_VECTORS(float, float)
EQTP_VECTORS(double, double)
EQTP_VECTORS(int, int)
EQTP_VECTORS(unsigned, uint)
#undef EQTP_VECTORS

// ----------------------------------------------------------------------------------------------------------------
//   barriers and warps
inline void __syncthreads() {
  EQTP_TSAN(void* order; {
    eqtp::cpu::Quiet quiet;
    order = &eqtp::cpu::current->order[eqtp::cpu::current->turn & 1];
  } __tsan_release(order);)
  eqtp::cpu::yield(eqtp::cpu::AT_BARRIER);
  EQTP_TSAN(__tsan_acquire(order);)
}
inline void __syncwarp(unsigned mask = ~0u) {
  [[maybe_unused]] eqtp::cpu::Quiet quiet;
  eqtp::cpu::meet("__syncwarp", mask, true, true);
}
inline void __threadfence() {  // to the race checker a lock that is taken and left
  static char order;
  (void)order;
  EQTP_TSAN(__tsan_acquire(&order), __tsan_release(&order);)
}
inline void __threadfence_block() { __threadfence(); }

template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  return eqtp::cpu::shuffle("__shfl_sync", mask, v,
                            (int(eqtp::cpu::self().lane) & ~(width - 1)) | (lane & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32) {
  const int l = eqtp::cpu::self().lane, from = l ^ bits;
  return eqtp::cpu::shuffle("__shfl_xor_sync", mask, v, from > (l | (width - 1)) ? l : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const int l = eqtp::cpu::self().lane, from = l + int(delta);
  return eqtp::cpu::shuffle("__shfl_down_sync", mask, v, from > (l | (width - 1)) ? l : from);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const int l = eqtp::cpu::self().lane, from = l - int(delta);
  return eqtp::cpu::shuffle("__shfl_up_sync", mask, v, from < (l & ~(width - 1)) ? l : from);
}
inline unsigned __ballot_sync(unsigned mask, int vote) { return eqtp::cpu::ballot("__ballot_sync", mask, vote); }
inline int __any_sync(unsigned mask, int vote) { return eqtp::cpu::ballot("__any_sync", mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return eqtp::cpu::ballot("__all_sync", mask, !vote) == 0; }

// ----------------------------------------------------------------------------------------------------------------
//   asynchronous copies: they happen when they are waited for; until then there is NaN where they go, written at
//   once, so that the race checker sees what the copy would overwrite
namespace eqtp {
namespace cpu {
inline void copy_async(void* to, const void* from, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(to) % bytes || reinterpret_cast<uintptr_t>(from) % bytes)
    throw std::runtime_error("an asynchronous copy is not aligned to its " + std::to_string(bytes) + " bytes");
  if (bytes == 2) {
    std::memcpy(to, from, bytes);
    return;
  }
  std::memset(to, 0xff, bytes);
  [[maybe_unused]] Quiet quiet;
  current->fiber->copies.push_back({to, from, bytes});
}
inline void end_copies() {
  [[maybe_unused]] Quiet quiet;
  Fiber& f = *current->fiber;
  f.groups.push_back(f.copies.size());
}
inline void wait_copies(size_t groups) {
  Fiber& f = self();
  size_t done = 0;
  {
    [[maybe_unused]] Quiet quiet;
    if (f.groups.size() <= groups) return;
    done = f.groups[f.groups.size() - groups - 1];
  }
  for (size_t n = 0; n < done; ++n) std::memcpy(f.copies[n].to, f.copies[n].from, f.copies[n].bytes);
  [[maybe_unused]] Quiet quiet;
  f.copies.erase(f.copies.begin(), f.copies.begin() + done);
  f.groups.erase(f.groups.begin(), f.groups.end() - groups);
  for (size_t& end : f.groups) end -= done;
}
}  // namespace cpu
}  // namespace eqtp

// ----------------------------------------------------------------------------------------------------------------
//   memory
namespace eqtp {
namespace cpu {
template <class T, class... Allowed>
constexpr bool one_of = (std::is_same<T, Allowed>::value || ...);
// *p = f(*p); returns what stood there before
template <class T, class F>
T atomically(T* p, F f) {
  T old, next;
  __atomic_load(p, &old, __ATOMIC_RELAXED);
  do next = f(old);
  while (!__atomic_compare_exchange(p, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}
template <class T>
struct Same {
  using type = T;
};
template <class T>
using As = typename Same<T>::type;  // the argument is converted to T, not deduced
}  // namespace cpu
}  // namespace eqtp

template <class T>
T atomicAdd(T* p, eqtp::cpu::As<T> v) {
  static_assert(eqtp::cpu::one_of<T, int, unsigned, unsigned long long, float, double>, "CUDA has no such atomicAdd");
  return eqtp::cpu::atomically(p, [v](T old) { return old + v; });
}
template <class T>
T atomicMax(T* p, eqtp::cpu::As<T> v) {
  static_assert(eqtp::cpu::one_of<T, int, unsigned, long long, unsigned long long>, "CUDA has no such atomicMax");
  return eqtp::cpu::atomically(p, [v](T old) { return old > v ? old : v; });
}
template <class T>
T atomicMin(T* p, eqtp::cpu::As<T> v) {
  static_assert(eqtp::cpu::one_of<T, int, unsigned, long long, unsigned long long>, "CUDA has no such atomicMin");
  return eqtp::cpu::atomically(p, [v](T old) { return old < v ? old : v; });
}
template <class T>
T atomicExch(T* p, eqtp::cpu::As<T> v) {
  static_assert(eqtp::cpu::one_of<T, int, unsigned, unsigned long long, float>, "CUDA has no such atomicExch");
  return eqtp::cpu::atomically(p, [v](T) { return v; });
}
template <class T>
T atomicCAS(T* p, eqtp::cpu::As<T> expected, eqtp::cpu::As<T> v) {
  static_assert(eqtp::cpu::one_of<T, int, unsigned, unsigned short, unsigned long long>, "CUDA has no such atomicCAS");
  return eqtp::cpu::atomically(p, [=](T old) { return old == expected ? v : old; });
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, eqtp::cpu::As<T> v) {
  *p = v;
}

// ----------------------------------------------------------------------------------------------------------------
//   numbers; the others are those of math.h
template <class A, class B>
std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
