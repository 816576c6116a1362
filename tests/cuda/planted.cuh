// Kernels with planted bugs, each beside the right one, for tests/test_cuda_cpu.py: what is said to be found must be
// found.
#pragma once
#include "common/device.cuh"

namespace eqtp {

enum Bug {
  NONE,
  MISSING_BARRIER,
  DIVERGENT_BARRIER,
  DIVERGENT_WARP,
  GLOBAL_OVERRUN,
  SHARED_OVERRUN,
  STATIC_OVERRUN,
  UNDEFINED_DYNAMIC,
  UNDEFINED_STATIC
};

// y[b, t] = sum of x[b, 0..t] within each block b, by doubling, in dynamic shared memory; x, y: [blocks, threads]
template <int BUG>
__global__ void scan_kernel(const float* __restrict__ x, float* __restrict__ y) {
  EQTP_DYN_SHARED(float, s);  // [threads]
  __shared__ float total[2];
  const int t = threadIdx.x, n = blockDim.x;
  const Index at = Index(blockIdx.x) * n + t;
  if (BUG != UNDEFINED_DYNAMIC || t != 5) s[t] = x[at];
  if (t == 0 && BUG != UNDEFINED_STATIC) total[0] = 0;
  if (BUG != DIVERGENT_BARRIER || t < 40) __syncthreads();
  for (int d = 1; d < n; d *= 2) {
    const float v = t >= d ? s[t - d] : 0.0f;
    if (BUG != MISSING_BARRIER) __syncthreads();
    s[t] += v;
    __syncthreads();
  }
  if (BUG == DIVERGENT_WARP && t % 32 < 16) __shfl_xor_sync(ALL_LANES, t, 1);
  if (BUG == SHARED_OVERRUN && t == n - 1) s[t + 1] = 0;
  if (BUG == STATIC_OVERRUN) total[t / 32 + 1] = 0;
  y[at + (BUG == GLOBAL_OVERRUN)] = s[t] + total[0];
}

// y[0] += sum of x[blocks, threads]: shuffles, static shared memory, one atomic addition for each block
template <class T, bool RACE>
__global__ void __launch_bounds__(256) total_kernel(const T* __restrict__ x, Real<T>* y) {
  __shared__ Real<T> part[8];
  const int t = threadIdx.x, warps = blockDim.x / 32;
  Real<T> sum = read(x[Index(blockIdx.x) * blockDim.x + t]);
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
  if (t % 32 == 0) part[t / 32] = sum;
  __syncthreads();
  if (t >= 32) return;
  sum = t < warps ? part[t] : Real<T>(0);
  for (int d = 4; d > 0; d /= 2) sum += __shfl_down_sync(ALL_LANES, sum, d);
  if (t > 0) return;
  if (RACE) *y += sum;
  else atomicAdd(y, sum);
}

// Lane l of each warp gets the number of lane 31 - l through shared memory that only its warp uses; x, y: [threads]
template <bool SYNC>
__global__ void turn_kernel(const int* x, int* y) {
  EQTP_DYN_SHARED(int, s);  // [threads]
  s[threadIdx.x] = x[threadIdx.x];
  if (SYNC) __syncwarp();
  else (void)__shfl_sync(ALL_LANES, 0, 0);  // meets, but orders no memory
  y[threadIdx.x] = s[threadIdx.x ^ 31];
}

}  // namespace eqtp
