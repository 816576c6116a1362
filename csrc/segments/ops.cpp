// Graphs, and sums, maxima and softmaxes over their segments, as ops of torch: eqtp/ops/{graph,segment_*}.py.
#include <cstring>

#include "common/parallel.h"
#include "common/stable.h"
#include "segments/graph.h"
#include "segments/segments.h"

namespace eqtp {

// ---- graphs
static void graph_edges(Arguments& in, Results& out) {
  Tensor src = in.tensor(), dst = in.tensor(), valid = in.tensor();  // [e], [e], [e] or none
  const int64_t e = src.size(0), num_src = in.tensor().size(0), num_dst = in.tensor().size(0);
  const int32_t dtype = src.is_int64() == dst.is_int64() ? src.dtype() : Tensor::int64();
  for (Tensor* t : {&src, &dst})
    if (t->stride(0) != 1 || t->dtype() != dtype) *t = t->contiguous(dtype);
  if (valid && valid.stride(0) != 1) valid = valid.contiguous(valid.dtype());
  const bool* counts = valid ? valid.data<bool>() : nullptr;
  for (int n = 0; n < 2; ++n) out.push_back(Tensor::empty({e}, Tensor::int64()));
  const auto copy = [&](auto type) {
    using I = decltype(type);
    const int64_t bad = copy_edges(src.data<I>(), dst.data<I>(), counts, e, num_src, num_dst,
                                   out[0].mutable_data<int64_t>(), out[1].mutable_data<int64_t>());
    if (bad < 0) return;
    const int64_t index = (bad % 2 ? dst : src).data<I>()[bad / 2];
    // Python makes a ValueError of it
    fail("ValueError: Graph", std::string(bad % 2 ? "dst" : "src") + " must be in [0, " +
                                  std::to_string(bad % 2 ? num_dst : num_src) + "), got " + std::to_string(index) +
                                  " at edge " + std::to_string(bad / 2));
  };
  if (src.is_int64()) copy(int64_t());
  else copy(int32_t());
}
static constexpr Op graph_edges_op{
    .name = "graph_edges",
    .schema =
        "(Tensor src, Tensor dst, Tensor? valid, Tensor src_nodes, Tensor dst_nodes, str check) -> "
        "(Tensor, Tensor)",
    .run = graph_edges};
static const Registered<graph_edges_op> register_graph_edges;

static void graph_csr(Arguments& in, Results& out) {
  Tensor index = in.tensor();  // [e]
  const int64_t e = index.size(0), num = in.tensor().size(0);
  if (index.stride(0) != 1) index = index.contiguous(index.dtype());
  out.push_back(Tensor::empty({num + 1}, index.dtype()));
  out.push_back(Tensor::empty({e}, index.dtype()));
  sort_by(index.data<int64_t>(), e, num, out[0].mutable_data<int64_t>(), out[1].mutable_data<int64_t>());
}
static constexpr Op graph_csr_op{
    .name = "graph_csr", .schema = "(Tensor index, Tensor nodes) -> (Tensor, Tensor)", .run = graph_csr};
static const Registered<graph_csr_op> register_graph_csr;

// ---- segments
struct Segments { Tensor ptr, order; };  // [num + 1], [e]

// After dst, which no kernel needs
static Segments segments_behind_dst(Arguments& in) { return in.tensor(), Segments{in.tensor(), in.tensor()}; }

// Arguments of a kernel over the segments of rows x [e, c]
template <class T>
static SegmentArgs<T> arguments(const Tensor& x, const Segments& s, const Tensor& out) {
  return {.x = x.data<T>(),
          .x_stride = x.stride(0),
          .ptr = s.ptr.data<int64_t>(),
          .order = s.order.data<int64_t>(),
          .e = x.size(0),
          .num = s.ptr.size(0) - 1,
          .c = x.size(1),
          .out = out.mutable_data<T>(),
          .arg = nullptr,
          .y = nullptr,
          .y_stride = 0,
          .threads = num_threads()};
}

static void sum(Arguments& in, Results& out) {
  const Tensor x = in.tensor().contiguous_rows();  // [e, c]
  const Segments s = segments_behind_dst(in);
  out.push_back(Tensor::empty({s.ptr.size(0) - 1, x.size(1)}, x.dtype()));
  with_real(x.is_float64(), [&](auto real) { EQTP_RUN(segment_sum, arguments<decltype(real)>(x, s, out[0])); });
}
static constexpr Op sum_op{
    .name = "segment_sum",
    .schema = "(Tensor x, Tensor dst, Tensor ptr, Tensor order, bool padded, str family) -> Tensor",
    .run = sum};
static const Registered<sum_op> register_sum;

// Rows of the destinations, zero where an edge does not count (its destination is one past the last)
static void gather(Arguments& in, Results& out) {
  const Tensor g = in.tensor().contiguous_rows(), dst = in.tensor();  // [num, c], [e]
  const int64_t e = dst.size(0), num = g.size(0);
  const int64_t bytes = g.size(1) * g.itemsize(), stride = g.stride(0) * g.itemsize();
  out.push_back(Tensor::empty({e, g.size(1)}, g.dtype()));
  auto body = [&](int thread, int threads) {
    const Range r = share(e, thread, threads);
    for (int64_t i = r.begin; i < r.end; ++i) {
      const int64_t n = dst.data<int64_t>()[i];
      char* const row = out[0].mutable_data<char>() + i * bytes;
      if (n < num) std::memcpy(row, g.data<char>() + n * stride, size_t(bytes));
      else std::memset(row, 0, size_t(bytes));
    }
  };
  parallel(num_threads(), body);
}
static constexpr Op gather_op{
    .name = "segment_gather",
    .schema = "(Tensor g, Tensor dst, Tensor ptr, Tensor order, bool padded, str family) -> Tensor",
    .run = gather};
static const Registered<gather_op> register_gather;

static void max(Arguments& in, Results& out) {
  const Tensor x = in.tensor().contiguous_rows();  // [e, c]
  const Segments s{in.tensor(), in.tensor()};
  out.push_back(Tensor::empty({s.ptr.size(0) - 1, x.size(1)}, x.dtype()));
  out.push_back(Tensor::empty(out[0].shape(), s.ptr.dtype()));
  with_real(x.is_float64(), [&](auto real) {
    auto args = arguments<decltype(real)>(x, s, out[0]);
    args.arg = out[1].mutable_data<int64_t>();
    EQTP_RUN(segment_max, args);
  });
}
static constexpr Op max_op{.name = "segment_max",
                           .schema = "(Tensor x, Tensor ptr, Tensor order, str family) -> (Tensor, Tensor)",
                           .run = max};
static const Registered<max_op> register_max;

#define ROW_SEGMENTS "Tensor dst, Tensor ptr, Tensor order, bool padded, str family) -> Tensor"

// Kernels do not write where an edge does not count
static Tensor rows_like(const Tensor& x, bool padded) {
  Tensor rows = x.empty_like();
  if (padded) std::memset(rows.mutable_data<char>(), 0, size_t(x.size(0) * x.size(1) * x.itemsize()));
  return rows;
}

static void softmax(Arguments& in, Results& out) {
  const Tensor x = in.tensor().contiguous_rows();  // [e, c]
  const Segments s = segments_behind_dst(in);
  out.push_back(rows_like(x, in.flag()));
  with_real(x.is_float64(), [&](auto real) { EQTP_RUN(segment_softmax, arguments<decltype(real)>(x, s, out[0])); });
}
static constexpr Op softmax_op{.name = "segment_softmax", .schema = "(Tensor x, " ROW_SEGMENTS, .run = softmax};
static const Registered<softmax_op> register_softmax;

static void softmax_bwd(Arguments& in, Results& out) {
  const Tensor g = in.tensor().contiguous_rows(), y = in.tensor().contiguous_rows();  // [e, c]
  const Segments s = segments_behind_dst(in);
  out.push_back(rows_like(y, in.flag()));
  with_real(y.is_float64(), [&](auto real) {
    using T = decltype(real);
    auto args = arguments<T>(g, s, out[0]);
    args.y = y.data<T>(), args.y_stride = y.stride(0);
    EQTP_RUN(segment_softmax_bwd, args);
  });
}
static constexpr Op softmax_bwd_op{
    .name = "segment_softmax_bwd", .schema = "(Tensor g, Tensor y, " ROW_SEGMENTS, .run = softmax_bwd};
static const Registered<softmax_bwd_op> register_softmax_bwd;

}  // namespace eqtp
