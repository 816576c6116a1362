// Rows of many tensors [B, C, n] in shared memory, the other way round: what stands at (b, c) is a sample, and a thread
// works on one sample.
//
// A block of threads takes a tile of SAMPLES samples; thread t works on sample t % SAMPLES, and the threads of one
// sample (its workers, t / SAMPLES) share the work. In shared memory component k of sample s is at k stride(SAMPLES) +
// s: neither order of access has two threads in one bank.
#pragma once
#include "common/device.cuh"

namespace eqtp {

// A tensor [B, C, n], the last dimension contiguous; a stride of 0: all share one row
template <class T>
struct SampleRows {
  T* at;
  Index batch, channel;  // strides of B and C
};

constexpr __host__ __device__ int stride(int samples) { return samples | 1; }

// Where each row of the tile that begins at sample `first` of [B, C] begins in each of N tensors
template <int SAMPLES, int N, class T>
__device__ __forceinline__ void find_rows(const SampleRows<T> (&tensors)[N], Index first, int count, Index channels,
                                          Index* begin) {  // begin [N, SAMPLES]
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const Index b = (first + i) / channels, c = (first + i) % channels;
    EQTP_UNROLL
    for (int n = 0; n < N; ++n) begin[n * SAMPLES + i] = b * tensors[n].batch + c * tensors[n].channel;
  }
}

// Tiles of all inputs, zeros for samples that are not there. All threads of a block call. begin [IN + OUT, SAMPLES],
// inputs [.., stride(SAMPLES)] in shared memory. Plan: SAMPLES; IN, OUT inputs and outputs; FIRST_IN, FIRST_OUT first
// component of each in the tile, and one more: how many there are.
template <class Plan, class T>
__device__ __forceinline__ void load_tiles(const SampleRows<const T> (&in)[Plan::IN],
                                           const SampleRows<T> (&out)[Plan::OUT], Index first, int count,
                                           Index channels, Index* begin, Real<T>* inputs) {
  constexpr int SAMPLES = Plan::SAMPLES;
  find_rows<SAMPLES>(in, first, count, channels, begin);
  find_rows<SAMPLES>(out, first, count, channels, begin + Plan::IN * SAMPLES);
  __syncthreads();
  each<0, Plan::IN>([&](auto i) {
    constexpr int INPUT = decltype(i)::value, FIRST = Plan::FIRST_IN[INPUT], N = Plan::FIRST_IN[INPUT + 1] - FIRST;
#pragma unroll 4  // loads under way together
    for (int e = threadIdx.x; e < SAMPLES * N; e += blockDim.x) {
      const int s = e / N, k = FIRST + e % N;
      inputs[k * stride(SAMPLES) + s] = s < count ? read(in[INPUT].at[begin[INPUT * SAMPLES + s] + e % N]) : Real<T>(0);
    }
  });
  __syncthreads();
}

// Writes the tiles of all outputs, once all threads have filled them; what is in shared memory may then be overwritten.
template <class Plan, class T>
__device__ __forceinline__ void store_tiles(const SampleRows<T> (&out)[Plan::OUT], int count, const Index* begin,
                                            const Real<T>* outputs) {
  constexpr int SAMPLES = Plan::SAMPLES;
  __syncthreads();
  each<0, Plan::OUT>([&](auto o) {
    constexpr int OUTPUT = decltype(o)::value, FIRST = Plan::FIRST_OUT[OUTPUT], N = Plan::FIRST_OUT[OUTPUT + 1] - FIRST;
#pragma unroll 4
    for (int e = threadIdx.x; e < count * N; e += blockDim.x) {
      const int s = e / N, k = FIRST + e % N;
      write(out[OUTPUT].at + begin[(Plan::IN + OUTPUT) * SAMPLES + s] + e % N, outputs[k * stride(SAMPLES) + s]);
    }
  });
  __syncthreads();
}

}  // namespace eqtp
