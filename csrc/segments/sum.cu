#include "segments/sum.cuh"

namespace eqtp {

[[maybe_unused]] static void sum(P x, Index x_stride, P ptr, P order, Index e, Index num, Index c, P out, int dtype,
                                 int device, P stream) {
  if (num == 0 || c == 0) return;
  const cuda::DeviceGuard guard(device, "segment_sum");
  with_rows(dtype, "segment_sum", c, {x_stride}, {x, out}, [&](auto* row, auto vec) {
    using T = std::remove_pointer_t<decltype(row)>;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(e, num, c / VEC, VEC * sizeof(T));
    launch(segment_sum_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(stream), at<const T>(x), x_stride,
           at<const Index>(ptr), at<const Index>(order), num, c, t.lanes, t.parts, t.limit, at<T>(out));
  });
  cuda::check_launch("segment_sum");
}

}  // namespace eqtp

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include "common/module.h"

namespace eqtp {
EQTP_BINDING(define_segment_sum_cuda) { m.def("segment_sum_cuda", &sum); }
}  // namespace eqtp
#endif
