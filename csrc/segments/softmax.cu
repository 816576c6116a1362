#include "segments/softmax.cuh"

namespace eqtp {

// Parts of a team such that what they hold is twice a segment of average length
static int least_parts(Index e, Index num, int held) {
  int parts = 1;
  while (parts < 32 && parts * held * num < 2 * e) parts *= 2;
  return parts;
}

[[maybe_unused]] static void softmax(P x, Index x_stride, P ptr, P order, Index e, Index num, Index c, P out, int dtype,
                                     int device, P stream) {
  if (e == 0 || c == 0) return;
  const cuda::DeviceGuard guard(device, "segment_softmax");
  with_rows(dtype, "segment_softmax", c, {x_stride}, {x, out}, [&](auto* row, auto vec) {
    using T = std::remove_pointer_t<decltype(row)>;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(e, num, c / VEC, VEC * sizeof(T), least_parts(e, num, held<T, VEC>));
    launch(segment_softmax_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(stream), at<const T>(x), x_stride,
           at<const Index>(ptr), at<const Index>(order), num, c, t.lanes, t.parts, t.limit, at<T>(out));
  });
  cuda::check_launch("segment_softmax");
}

[[maybe_unused]] static void softmax_bwd(P g, Index g_stride, P ptr, P order, Index e, Index num, Index c, P gx, P y,
                                         Index y_stride, int dtype, int device, P stream) {
  if (e == 0 || c == 0) return;
  const cuda::DeviceGuard guard(device, "segment_softmax_bwd");
  with_rows(dtype, "segment_softmax_bwd", c, {g_stride, y_stride}, {g, y, gx}, [&](auto* row, auto vec) {
    using T = std::remove_pointer_t<decltype(row)>;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(e, num, c / VEC, VEC * sizeof(T), least_parts(e, num, held<T, VEC> / 2));
    launch(segment_softmax_bwd_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(stream), at<const T>(g),
           g_stride, at<const T>(y), y_stride, at<const Index>(ptr), at<const Index>(order), num, c, t.lanes, t.parts,
           t.limit, at<T>(gx));
  });
  cuda::check_launch("segment_softmax_bwd");
}

}  // namespace eqtp

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include "common/module.h"

namespace eqtp {
EQTP_BINDING(define_segment_softmax_cuda) {
  m.def("segment_softmax_cuda", &softmax);
  m.def("segment_softmax_bwd_cuda", &softmax_bwd);
}
}  // namespace eqtp
#endif
