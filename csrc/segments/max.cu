#include "segments/max.cuh"

namespace eqtp {

[[maybe_unused]] static void max(P x, Index x_stride, P ptr, P order, Index e, Index num, Index c, P out, P arg,
                                 int dtype, int device, P stream) {
  if (num == 0 || c == 0) return;
  const cuda::DeviceGuard guard(device, "segment_max");
  with_rows(dtype, "segment_max", c, {x_stride}, {x, out}, [&](auto* row, auto vec) {
    using T = std::remove_pointer_t<decltype(row)>;
    constexpr int VEC = decltype(vec)::value;
    const Teams t = teams(e, num, c / VEC, VEC * sizeof(T));
    launch(segment_max_kernel<T, VEC>, t.blocks, SEGMENT_THREADS, 0, cudaStream_t(stream), at<const T>(x), x_stride,
           at<const Index>(ptr), at<const Index>(order), e, num, c, t.lanes, t.parts, t.limit, at<T>(out),
           at<Index>(arg));
  });
  cuda::check_launch("segment_max");
}

}  // namespace eqtp

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include "common/module.h"

namespace eqtp {
EQTP_BINDING(define_segment_max_cuda) { m.def("segment_max_cuda", &max); }
}  // namespace eqtp
#endif
