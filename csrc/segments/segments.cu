// Launches the kernels of sum.cuh, max.cuh and softmax.cuh.
#include <cstdint>
#include <initializer_list>

#include "common/cuda.h"
#include "segments/max.cuh"
#include "segments/softmax.cuh"
#include "segments/sum.cuh"

namespace eqtp {

using cuda::Address;
using cuda::pointer;

// Operands by address: x [e, c] and y [e, c], rows x_stride and y_stride apart; ptr [num + 1], order [e]; out and arg
// without gaps. y: softmax_bwd only; arg: max only.
struct SegmentCall {
  const char* what;
  Address x;
  Index x_stride;
  Address ptr, order;
  Index e, num, c;
  Address out, arg, y;
  Index y_stride;
  int dtype, device;
  Address stream;
};

// f(Type<T>, Int<VEC>) with T of the dtype and VEC numbers in 16 bytes where all rows are aligned to that, else 1
template <class F>
static void launch_segments(const SegmentCall& call, F&& f) {
  const cuda::DeviceGuard guard(call.device, call.what);
  cuda::with_dtype(call.dtype, call.what, [&](auto type) {
    constexpr int VEC = WHOLE_VECTOR / sizeof(typename decltype(type)::type);
    bool aligned = call.c % VEC == 0;
    for (Index stride : {call.x_stride, call.y_stride}) aligned = aligned && stride % VEC == 0;
    for (Address p : {call.x, call.y, call.out}) aligned = aligned && p % WHOLE_VECTOR == 0;
    if (aligned) f(type, Int<VEC>{});
    else f(type, Int<1>{});
  });
  cuda::check_launch(call.what);
}

// Parts of a team such that what they hold is twice a segment of average length
static int least_parts(Index e, Index num, int held) {
  int parts = 1;
  while (parts < 32 && parts * held * num < 2 * e) parts *= 2;
  return parts;
}

[[maybe_unused]] static void sum(const SegmentCall& a) {
  if (a.num == 0 || a.c == 0) return;
  launch_segments(a, [&](auto type, auto vec) {
    using T = typename decltype(type)::type;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(a.e, a.num, a.c / VEC, VEC * sizeof(T));
    launch(segment_sum_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(a.stream), pointer<const T>(a.x),
           a.x_stride, pointer<const Index>(a.ptr), pointer<const Index>(a.order), a.num, a.c, t.lanes, t.parts,
           t.limit, pointer<T>(a.out));
  });
}

[[maybe_unused]] static void max(const SegmentCall& a) {
  if (a.num == 0 || a.c == 0) return;
  launch_segments(a, [&](auto type, auto vec) {
    using T = typename decltype(type)::type;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(a.e, a.num, a.c / VEC, VEC * sizeof(T));
    launch(segment_max_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(a.stream), pointer<const T>(a.x),
           a.x_stride, pointer<const Index>(a.ptr), pointer<const Index>(a.order), a.e, a.num, a.c, t.lanes, t.parts,
           t.limit, pointer<T>(a.out), pointer<Index>(a.arg));
  });
}

[[maybe_unused]] static void softmax(const SegmentCall& a) {
  if (a.e == 0 || a.c == 0) return;
  launch_segments(a, [&](auto type, auto vec) {
    using T = typename decltype(type)::type;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(a.e, a.num, a.c / VEC, VEC * sizeof(T), least_parts(a.e, a.num, held<T, VEC>));
    launch(segment_softmax_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(a.stream), pointer<const T>(a.x),
           a.x_stride, pointer<const Index>(a.ptr), pointer<const Index>(a.order), a.num, a.c, t.lanes, t.parts,
           t.limit, pointer<T>(a.out));
  });
}

// x: the gradient of the softmax y
[[maybe_unused]] static void softmax_bwd(const SegmentCall& a) {
  if (a.e == 0 || a.c == 0) return;
  launch_segments(a, [&](auto type, auto vec) {
    using T = typename decltype(type)::type;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(a.e, a.num, a.c / VEC, VEC * sizeof(T), least_parts(a.e, a.num, held<T, VEC> / 2));
    launch(segment_softmax_bwd_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(a.stream),
           pointer<const T>(a.x), a.x_stride, pointer<const T>(a.y), a.y_stride, pointer<const Index>(a.ptr),
           pointer<const Index>(a.order), a.num, a.c, t.lanes, t.parts, t.limit, pointer<T>(a.out));
  });
}

}  // namespace eqtp

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include "common/module.h"

namespace eqtp {

// A kernel as Python calls it
template <void run(const SegmentCall&)>
static auto bind(const char* what) {
  return [what](Address x, Index x_stride, Address ptr, Address order, Index e, Index num, Index c, Address out,
                Address arg, Address y, Index y_stride, int dtype, int device, Address stream) {
    run({.what = what,
         .x = x,
         .x_stride = x_stride,
         .ptr = ptr,
         .order = order,
         .e = e,
         .num = num,
         .c = c,
         .out = out,
         .arg = arg,
         .y = y,
         .y_stride = y_stride,
         .dtype = dtype,
         .device = device,
         .stream = stream});
  };
}

EQTP_BINDING(define_segments_cuda) {
  m.def("segment_sum_cuda", bind<sum>("segment_sum"));
  m.def("segment_max_cuda", bind<max>("segment_max"));
  m.def("segment_softmax_cuda", bind<softmax>("segment_softmax"));
  m.def("segment_softmax_bwd_cuda", bind<softmax_bwd>("segment_softmax_bwd"));
}

}  // namespace eqtp
#endif
