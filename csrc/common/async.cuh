// Copies from global into shared memory that a thread starts and waits for later. Neither side passes through its
// registers. A thread sees what it has copied itself after wait_copies, and what other lanes have copied after a
// barrier behind that.
#pragma once
#include "common/device.cuh"

namespace eqtp {

// An address in shared memory, as copies take it
struct SharedAddress {
#ifdef __CUDA_ARCH__
  unsigned at;
  __device__ __forceinline__ SharedAddress(const void* p) : at(unsigned(__cvta_generic_to_shared(p))) {}
#else
  char* at;
  SharedAddress(void* p) : at(static_cast<char*>(p)) {}
#endif
};
// 4, 8 or 16 bytes to `offset` bytes behind an address, both sides aligned to as many. 16 go past the first-level
// cache. 2 bytes, for which there is no such copy, are there at once, as are all before Ampere.
template <int BYTES>
__device__ __forceinline__ void copy_async(SharedAddress to, int offset, const void* from) {
  static_assert(BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16);
#ifdef __CUDA_ARCH__
  if constexpr (BYTES == 2) {
    asm volatile("{ .reg .u16 v; ld.global.u16 v, [%1]; st.shared.u16 [%0], v; }" ::"r"(to.at + offset), "l"(from)
                 : "memory");
    return;
  }
#if __CUDA_ARCH__ >= 800
  if constexpr (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to.at + offset), "l"(from));
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to.at + offset), "l"(from), "n"(BYTES));
#else
  EQTP_UNROLL
  for (int i = 0; i < BYTES; i += 4)
    asm volatile("{ .reg .u32 v; ld.global.u32 v, [%1]; st.shared.u32 [%0], v; }" ::"r"(to.at + offset + i),
                 "l"(static_cast<const char*>(from) + i)
                 : "memory");
#endif
#elif !defined(__CUDACC__)  // nvcc reads this for the host, too
  cpu::copy_async(to.at + offset, from, BYTES);
#endif
}
// Ends a group of copies, possibly empty
__device__ __forceinline__ void end_copies() {
#ifndef __CUDACC__
  cpu::end_copies();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;");
#endif
}
// Waits until at most the last N groups are under way
template <int N>
__device__ __forceinline__ void wait_copies() {
#ifndef __CUDACC__
  cpu::wait_copies(N);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

}  // namespace eqtp
