// Sums of products of components from tables of coupling coefficients (eqtp/plans/couplings.py), specialised. A worker
// of a sample (tile.cuh) takes every WORKERS-th component of the outputs; a table that is not long becomes
// instructions.
//
// Plan: what tile.cuh wants; WORKERS, UNROLL.
// Functions: group(k) first group of component k, scale(g), entry(g) first entry of group g, a(e), b(e) components of
// the inputs, c(e).
#pragma once
#include "common/tile.cuh"

namespace eqtp {

// f(group) for the groups of component k, f(entry) for the entries of group g
template <class Plan, class K, class F>
__device__ __forceinline__ void each_group(K k, F&& f) {
  if constexpr (Plan::UNROLL) {
    each<Plan::group(K::value), Plan::group(K::value + 1)>(f);
  } else {
    EQTP_LOOP
    for (int g = Plan::group(k); g < Plan::group(k + 1); ++g) f(g);
  }
}
template <class Plan, class G, class F>
__device__ __forceinline__ void each_entry(G g, F&& f) {
  if constexpr (Plan::UNROLL) {
    each<Plan::entry(G::value), Plan::entry(G::value + 1)>(f);
  } else {
#pragma unroll 4
    for (int e = Plan::entry(g); e < Plan::entry(g + 1); ++e) f(e);
  }
}

// Component k of the outputs. inputs: [components, stride(SAMPLES)] of the thread's sample
template <class Plan, class R, class K>
__device__ __forceinline__ R couple_component(K k, const R* inputs) {
  constexpr int STRIDE = stride(Plan::SAMPLES);
  R sum = 0;
  each_group<Plan>(k, [&](auto g) {
    R part = 0;
    each_entry<Plan>(g, [&](auto e) {
      part = fused(R(Plan::c(e)) * inputs[Plan::a(e) * STRIDE], inputs[Plan::b(e) * STRIDE], part);
    });
    const int scale = Plan::scale(g);
    sum = scale < 0 ? sum + part : fused(inputs[scale * STRIDE], part, sum);
  });
  return sum;
}

// Any number of blocks of SAMPLES x WORKERS threads. channels: C; samples: B C. Shared memory:
//   Index begin[IN + OUT][SAMPLES]; Real<T> inputs[..][stride(SAMPLES)], outputs[..][stride(SAMPLES)]
template <class Plan, class T>
__device__ __forceinline__ void couple(Index channels, Index samples, const SampleRows<const T> (&in)[Plan::IN],
                                       const SampleRows<T> (&out)[Plan::OUT]) {
  using R = Real<T>;
  constexpr int SAMPLES = Plan::SAMPLES, STRIDE = stride(SAMPLES), WORKERS = Plan::WORKERS,
                TAKEN = Plan::FIRST_IN[Plan::IN], COMPONENTS = Plan::FIRST_OUT[Plan::OUT];
  EQTP_DYN_SHARED(Index, begin);
  R* const inputs = reinterpret_cast<R*>(begin + (Plan::IN + Plan::OUT) * SAMPLES);
  R* const outputs = inputs + TAKEN * STRIDE;
  const int sample = threadIdx.x % SAMPLES, worker = threadIdx.x / SAMPLES;
  for (Index first = Index(blockIdx.x) * SAMPLES; first < samples; first += Index(gridDim.x) * SAMPLES) {
    const int count = int(samples - first < SAMPLES ? samples - first : SAMPLES);
    load_tiles<Plan>(in, out, first, count, channels, begin, inputs);
    if constexpr (Plan::UNROLL) {
      each<0, COMPONENTS>([&](auto k) {
        if (k % WORKERS == worker) outputs[k * STRIDE + sample] = couple_component<Plan>(k, inputs + sample);
      });
    } else {
      EQTP_LOOP
      for (int k = worker; k < COMPONENTS; k += WORKERS)
        outputs[k * STRIDE + sample] = couple_component<Plan>(k, inputs + sample);
    }
    store_tiles<Plan>(out, count, begin, outputs);
  }
}

}  // namespace eqtp
