// Launches the kernels of table_driven.cuh: the convolution, and the plain product as one with an edge per row.
#include "channelwise/table_driven.cuh"
#include "common/cuda.h"
#include "common/device.cuh"

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

namespace eqtp::table_driven {

constexpr size_t SHARED = 48 << 10;  // bytes that a kernel gets without asking

using P = uintptr_t;  // address of a tensor's first element; 0: absent
template <class T>
static T* pointer(P address) {
  return reinterpret_cast<T*>(address);
}

// The tables of one walk as Python holds them (eqtp/backends/native/library.py): addresses in the order of WalkColumns,
// and how many groups there are and the largest of: components of a group, of a block across from it, entries of M
struct HostColumns {
  std::vector<P> address;  // [7]
  int groups, d, other, count;
};
template <class R>
static WalkColumns<R> view(const HostColumns& h, int dim2) {
  return {pointer<const ChannelGroup>(h.address[0]),
          pointer<const TablePath>(h.address[1]),
          pointer<const int>(h.address[2]),
          pointer<const R>(h.address[3]),
          pointer<const int>(h.address[4]),
          pointer<const int>(h.address[5]),
          pointer<const R>(h.address[6]),
          h.groups,
          dim2};
}
// fwd needs M and the sums [LANES, min(d, TILE)]; bwd also gM and blocks of x and g [d, PITCH]
template <class R>
static Space layout(const HostColumns& h, bool gradients, bool tangent) {
  Space s{};
  int at = LANES * (gradients || h.d < TILE ? h.d : TILE);
  auto take = [&](int& part, int count, bool wanted) {
    part = at;
    if (wanted) at += (count + 3) / 4 * 4;
  };
  take(s.m, h.count, true), take(s.tm, h.count, tangent), take(s.gm, h.count, gradients);
  take(s.x, h.d * PITCH<R>, gradients), take(s.tx, h.d * PITCH<R>, gradients && tangent);
  take(s.g, h.other * PITCH<R>, gradients), take(s.tg, h.other * PITCH<R>, gradients && tangent);
  s.size = at;
  return s;
}

template <class T>
static void run(void (*kernel)(WalkColumns<Real<T>>, Args<T>, Space), const HostColumns& h, int dim2, const Args<T>& a,
                bool gradients, bool tangent, const char* what, cudaStream_t stream) {
  using R = Real<T>;
  if (a.rows == 0 || h.groups == 0) return;
  const Space s = layout<R>(h, gradients, tangent);
  const size_t warp = size_t(s.size) * sizeof(R);
  int warps = MAX_WARPS;
  while (warps > 1 && warps * warp > SHARED) warps /= 2;
  if (warps * warp > SHARED)
    cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(warps * warp)), what);
  const Index blocks = (a.ptr ? a.rows : (a.rows + warps - 1) / warps) * h.groups, most = 0x7fffffff;
  launch(kernel, dim3(unsigned(blocks < most ? blocks : most)), dim3(LANES * warps), warps * warp, stream,
         view<R>(h, dim2), a, s);
  cuda::check_launch(what);
}

struct Call {
  Index num_src, num_dst, num_edges;
  std::vector<P> graph;  // src, dst, ptr, order, and ptr, order of the transposed graph; empty: rows
  std::vector<std::pair<P, int64_t>> in;  // address, row stride of x, y, w [, g [, tx, ty, tw]]
  std::vector<P> out;  // out, gx, gy, gw
  P shares;  // [groups of bwd, e, dim2] as Real<T>, where gy is wanted
  std::vector<int64_t> dims;  // dim1, dim2, dim3, numel
};

template <class T>
static void convolve(const HostColumns& fwd, const HostColumns& bwd, const Call& c, cudaStream_t stream) {
  const char* const what = c.graph.empty() ? "tensor_product" : "tensor_product_conv";
  const size_t inputs = c.in.size();
  auto data = [&](size_t i) { return i < inputs ? pointer<const T>(c.in[i].first) : nullptr; };
  auto stride = [&](size_t i) { return i < inputs ? Index(c.in[i].second) : 0; };
  auto column = [&](size_t i) { return c.graph.empty() ? nullptr : pointer<const Index>(c.graph[i]); };
  const int dim2 = int(c.dims[1]);
  Args<T> a{};
  a.x = data(0), a.y = data(1), a.w = data(2), a.g = data(3), a.tx = data(4), a.ty = data(5), a.tw = data(6);
  a.x_stride = stride(0), a.y_stride = stride(1), a.w_stride = stride(2), a.g_stride = stride(3);
  a.tx_stride = stride(4), a.ty_stride = stride(5), a.tw_stride = stride(6);
  a.out = pointer<T>(c.out[0]), a.gx = pointer<T>(c.out[1]), a.gw = pointer<T>(c.out[3]);
  a.gy = c.out[2] ? pointer<Real<T>>(c.shares) : nullptr;
  a.dim1 = c.dims[0], a.dim3 = c.dims[2], a.numel = c.dims[3], a.num_edges = c.num_edges;
  const bool tangent = inputs == 7;
  if (a.out) {
    a.rows = c.num_dst, a.ptr = column(2), a.order = column(3), a.other = column(0);
    run<T>(tangent ? tensor_product_fwd_kernel<true, T> : tensor_product_fwd_kernel<false, T>, fwd, dim2, a, false,
           tangent, what, stream);
  }
  if (inputs > 3 && (a.gx || a.gw || c.out[2])) {
    a.rows = c.num_src, a.ptr = column(4), a.order = column(5), a.other = column(1);
    run<T>(tangent ? tensor_product_bwd_kernel<true, T> : tensor_product_bwd_kernel<false, T>, bwd, dim2, a, true,
           tangent, what, stream);
  }
  const Index count = c.num_edges * dim2, blocks = (count + 255) / 256, most = 1 << 20;
  if (!c.out[2] || count == 0) return;
  launch(sum_groups_kernel<T>, dim3(unsigned(blocks < most ? blocks : most)), dim3(256), 0, stream, a.gy, bwd.groups,
         count, pointer<T>(c.out[2]));
  cuda::check_launch(what);
}

// dtype: the position in CUDA_DTYPES of eqtp/backends/native
static void convolve(const HostColumns& fwd, const HostColumns& bwd, const Call& c, int dtype, int device, P stream) {
  const cuda::DeviceGuard guard(device, "tensor_product_conv");
  const auto s = reinterpret_cast<cudaStream_t>(stream);
  switch (dtype) {
    case 0: return convolve<float>(fwd, bwd, c, s);
    case 1: return convolve<double>(fwd, bwd, c, s);
    case 2: return convolve<f16>(fwd, bwd, c, s);
    default: return convolve<bf16>(fwd, bwd, c, s);
  }
}

}  // namespace eqtp::table_driven

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include <pybind11/stl.h>

#include "common/module.h"

namespace eqtp::table_driven {

using Sizes = std::array<int, 4>;
EQTP_BINDING(define_tensor_product_conv_cuda) {
  m.def("tensor_product_conv_cuda",
        [](std::vector<P> fwd, Sizes fwd_sizes, std::vector<P> bwd, Sizes bwd_sizes, Index num_src, Index num_dst,
           Index num_edges, std::vector<P> graph, std::vector<std::pair<P, int64_t>> in, std::vector<P> out, P shares,
           std::vector<int64_t> dims, int dtype, int device, P stream) {
          auto host = [](std::vector<P>& address, const Sizes& n) {
            return HostColumns{std::move(address), n[0], n[1], n[2], n[3]};
          };
          const Call call{num_src,       num_dst,        num_edges, std::move(graph),
                          std::move(in), std::move(out), shares,    std::move(dims)};
          pybind11::gil_scoped_release nogil;
          convolve(host(fwd, fwd_sizes), host(bwd, bwd_sizes), call, dtype, device, stream);
        });
}

}  // namespace eqtp::table_driven
#endif
