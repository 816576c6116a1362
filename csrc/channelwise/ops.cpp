// Channelwise products, by row or over a graph, as ops of torch: eqtp/ops/tensor_product{,_conv}.py.
#include <cstring>

#include "channelwise/channelwise.h"
#include "common/record.h"
#include "common/stable.h"

namespace eqtp {

// eqtp/plans/channelwise.py, `record`
struct KeptPlan : ChannelwisePlan {
  explicit KeptPlan(const Record& r) : KeptPlan(r, r.integers(3)) {}
  KeptPlan(const Record& r, const std::vector<int64_t>& dims)
      : ChannelwisePlan(r.integers(0), r.integers(1), r.integers(2), r.numbers(4), dims.at(0), dims.at(1), dims.at(2),
                        dims.at(3)) {}
};

// The operands of a pass, in the order of the schema. Of a graph, dst and the transposed columns are not read
struct Operands {
  Tensor g, x, y, w, cx, cy, cw;
  Tensor src, ptr, order;
  std::vector<int64_t> wanted;

  Operands(Arguments& in, Pass pass, bool rows) {
    if (pass != FWD) g = in.tensor().contiguous_rows(), wanted = in.integers();
    x = in.tensor().contiguous_rows(), y = in.tensor().contiguous_rows(), w = in.tensor().contiguous_rows();
    if (pass == BWDBWD)
      cx = in.tensor().contiguous_rows(), cy = in.tensor().contiguous_rows(), cw = in.tensor().contiguous_rows();
    if (!rows) src = in.tensor(), in.tensor(), ptr = in.tensor(), order = in.tensor();
  }
  int64_t num_dst() const { return ptr ? ptr.size(0) - 1 : x.size(0); }
};

template <class T>
static ConvArgs<T> arguments(Pass pass, const PlanColumns<T>& columns, const Operands& o, const Results& outputs) {
  const auto data = [](const Tensor& t) { return t ? t.data<T>() : nullptr; };
  const auto index = [](const Tensor& t) { return t ? t.data<int64_t>() : nullptr; };
  const auto result = [](const Tensor& t) { return t ? t.mutable_data<T>() : nullptr; };
  const auto stride = [](const Tensor& t) { return t ? t.stride(0) : 0; };
  return {.pass = pass,
          .columns = &columns,
          .num_src = o.x.size(0),
          .num_dst = o.num_dst(),
          .num_edges = o.y.size(0),
          .rows = !o.ptr,
          .src = index(o.src),
          .ptr = index(o.ptr),
          .order = index(o.order),
          .x = data(o.x),
          .y = data(o.y),
          .w = data(o.w),
          .g = data(o.g),
          .tx = data(o.cx),
          .ty = data(o.cy),
          .tw = data(o.cw),
          .x_stride = stride(o.x),
          .y_stride = stride(o.y),
          .w_stride = stride(o.w),
          .g_stride = stride(o.g),
          .tx_stride = stride(o.cx),
          .ty_stride = stride(o.cy),
          .tw_stride = stride(o.cw),
          .out = result(outputs[0]),
          .gx = result(outputs[1]),
          .gy = result(outputs[2]),
          .gw = result(outputs[3]),
          .threads = num_threads()};
}

// Gradients of y and w of edges that do not count, which the kernels do not write: zeros
static void clear_padding(const Operands& o, const Tensor& rows) {
  if (!rows) return;
  const int64_t bytes = rows.size(1) * rows.itemsize(), e = o.order.size(0);
  for (int64_t i = o.ptr.data<int64_t>()[o.num_dst()]; i < e; ++i)
    std::memset(rows.mutable_data<char>() + o.order.data<int64_t>()[i] * bytes, 0, size_t(bytes));
}

// out, gx, gy, gw; none where there is none
static Results outputs_of(Pass pass, const Operands& o, int64_t dim_out) {
  const bool second = pass == BWDBWD;
  Results found(4);
  if (pass == FWD || (second && o.wanted.at(0))) found[0] = Tensor::empty({o.num_dst(), dim_out}, o.x.dtype());
  const Tensor* const like[] = {&o.x, &o.y, &o.w};
  for (size_t i = 0; pass != FWD && i < 3; ++i)
    if (o.wanted.at(i + second)) found[i + 1] = like[i]->empty_like();
  return found;
}

template <Pass pass, bool rows>
static void run(Arguments& in, Results& out) {
  const KeptPlan& plan = kept<KeptPlan>(in.text());
  const bool padded = !rows && in.flag();
  const Operands o(in, pass, rows);
  const auto& dims = plan.columns<double>();
  if (o.x.size(1) != dims.dim1 || o.y.size(1) != dims.dim2 || o.w.size(1) != dims.numel || o.w.size(0) != o.y.size(0))
    fail("tensor_product", "the operands do not have the sizes of the plan");
  Results found = outputs_of(pass, o, dims.dim_out);
  with_real(o.x.is_float64(), [&](auto real) {
    using T = decltype(real);
    EQTP_RUN(convolve, arguments(pass, plan.columns<T>(), o, found));
  });
  if (padded)
    for (size_t i : {2, 3}) clear_padding(o, found[i]);
  for (size_t i = pass == BWD; i < (pass == FWD ? 1u : 4u); ++i)
    out.push_back(found[i] ? std::move(found[i]) : Tensor::empty({0}, o.x.dtype()));
}

#define GRAPH "Tensor src, Tensor dst, Tensor ptr, Tensor order, Tensor tptr, Tensor torder, bool padded, "
#define CONSTANTS "str plan, str family)"
#define EQTP_PRODUCT(name, x1, x2, graph, rows)                                                                   \
  static constexpr Op name##_op{#name, "(Tensor " x1 ", Tensor " x2 ", Tensor w, " graph CONSTANTS " -> Tensor",  \
                                run<FWD, rows>};                                                                  \
  static constexpr Op name##_bwd_op{#name "_bwd",                                                                 \
                                    "(Tensor g, Tensor " x1 ", Tensor " x2                                        \
                                    ", Tensor w, bool[] wanted, " graph CONSTANTS " -> (Tensor, Tensor, Tensor)", \
                                    run<BWD, rows>};                                                              \
  static constexpr Op name##_bwdbwd_op{#name "_bwdbwd",                                                           \
                                       "(Tensor g, Tensor " x1 ", Tensor " x2 ", Tensor w, Tensor c" x1           \
                                       ", Tensor c" x2 ", Tensor cw, bool[] wanted, " graph CONSTANTS             \
                                       " -> (Tensor, Tensor, Tensor, Tensor)",                                    \
                                       run<BWDBWD, rows>};                                                        \
  static const Registered<name##_op> register_##name;                                                             \
  static const Registered<name##_bwd_op> register_##name##_bwd;                                                   \
  static const Registered<name##_bwdbwd_op> register_##name##_bwdbwd

EQTP_PRODUCT(tensor_product, "x1", "x2", "", true);
EQTP_PRODUCT(tensor_product_conv, "x", "y", GRAPH, false);

}  // namespace eqtp
