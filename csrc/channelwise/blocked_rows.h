// Rows [mul, d] of each irrep (mul_ir) <-> blocked rows [nv, d, W] (plan.h).
#pragma once
#include "channelwise/plan.h"
#include "common/interleave.h"
#include "common/parallel.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

// Whether W rows of D components are turned in registers
template <class T, int D>
static constexpr bool turns_in_registers = (D == 3 || D == 5 || D == 7) && Interleave<T, D>::has_permutations;

// One irrep: whole blocks through registers, other dimensions and the last channels one by one
template <class T, int D>
EQTP_INLINE void block_slot(const Slot& s, const T* row, T* blocked) {
  constexpr int W = Simd<T>::W;
  const int d = D ? D : s.d;
  int u = 0;
  if constexpr (turns_in_registers<T, D>)
    for (; u + W <= s.mul; u += W) {
      Vec<T> rows[D], components[D];
      for (int i = 0; i < D; ++i) rows[i] = load(row + u * D + i * W);
      deinterleave<T, D>(rows, components);
      for (int i = 0; i < D; ++i) store(blocked + u * D + i * W, components[i]);
    }
  for (; u < s.mul; ++u)
    for (int i = 0; i < d; ++i) blocked[u / W * W * d + i * W + u % W] = row[u * d + i];
}
template <class T, int D>
EQTP_INLINE void unblock_slot(const Slot& s, const T* blocked, T* row) {
  constexpr int W = Simd<T>::W;
  const int d = D ? D : s.d;
  int u = 0;
  if constexpr (turns_in_registers<T, D>)
    for (; u + W <= s.mul; u += W) {
      Vec<T> components[D], rows[D];
      for (int i = 0; i < D; ++i) components[i] = load(blocked + u * D + i * W);
      interleave<T, D>(components, rows);
      for (int i = 0; i < D; ++i) store(row + u * D + i * W, rows[i]);
    }
  for (; u < s.mul; ++u)
    for (int i = 0; i < d; ++i) row[u * d + i] = blocked[u / W * W * d + i * W + u % W];
}

#define EQTP_BY_DIM(f, s, ...)              \
  switch ((s).d) {                          \
    case 1: f<T, 1>(s, __VA_ARGS__); break; \
    case 3: f<T, 3>(s, __VA_ARGS__); break; \
    case 5: f<T, 5>(s, __VA_ARGS__); break; \
    case 7: f<T, 7>(s, __VA_ARGS__); break; \
    default: f<T, 0>(s, __VA_ARGS__);       \
  }
// row [dim] -> blocked, whose padding lanes must be zero already
template <class T>
static void block_row(const Slot* slots, int n, const T* row, T* blocked) {
  for (int i = 0; i < n; ++i) EQTP_BY_DIM(block_slot, slots[i], row + slots[i].offset, blocked + slots[i].toffset);
}
template <class T>
static void unblock_row(const Slot* slots, int n, const T* blocked, T* row) {
  for (int i = 0; i < n; ++i) EQTP_BY_DIM(unblock_slot, slots[i], blocked + slots[i].toffset, row + slots[i].offset);
}
#undef EQTP_BY_DIM

// rows [n, .], `stride` apart -> blocked rows [n, xt] of the first operand
template <class T>
static void block_rows(const PlanColumns<T>& t, const T* x, int64_t stride, int64_t n, T* blocked, int threads) {
  auto body = [&](int thread, int count) {
    const Range r = share(n, thread, count);
    for (int64_t i = r.begin; i < r.end; ++i) block_row(t.in1, t.n_in1, x + i * stride, blocked + i * t.xt);
  };
  parallel(threads, body);
}

}  // namespace eqtp::EQTP_SIMD
#endif
