// The walk over a graph: destinations are dealt to threads in contiguous ranges, a destination's edges are taken EDGES
// at a time, its output row stays in cache and is written once. Gradients of y and w are written per edge; the gradient
// of x is gathered in one buffer per thread and summed in a fixed order. Rows of many edges, into a destination or out
// of a source, are added in blocks (common/long_sums.h). No atomics, so results repeat bit by bit for a given number of
// threads.
#include "channelwise/channelwise.h"

#include "channelwise/blocked_rows.h"
#include "common/long_sums.h"
#include "common/parallel.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

template <class T>
EQTP_INLINE void fill(T* p, int64_t n, T v) {
  for (int64_t i = 0; i < n; ++i) p[i] = v;
}

// M[k, i] = sum_j C[i, j, k] y[j] for all paths
template <class T>
static void edge_matrix(const PlanColumns<T>& t, const T* y, T* m) {
  for (int q = 0; q < t.n_slices; ++q) {
    const Slice& s = t.slices[q];
    const T* c = t.coefficients + s.c;  // [d2, n]
    for (int at = 0; at < s.n; at += Simd<T>::W) {
      Vec<T> a{};
      for (int j = 0; j < s.d2; ++j) a += y[s.y + j] * load(c + int64_t(j) * s.n + at);
      store(m + s.m + at, a);
    }
  }
}

// weights of one edge, in whole vectors per path; padding lanes of `t` are zero already
template <class T>
static const T* pad_weights(const PlanColumns<T>& p, const T* row, T* t) {
  if (!p.padded) return row;
  for (int q = 0; q < p.n_paths; ++q)
    if (p.paths[q].w >= 0)
      for (int u = 0; u < p.paths[q].mul; ++u) t[p.paths[q].wt + u] = row[p.paths[q].w + u];
  return t;
}

static constexpr int64_t STREAM = 16 << 20;  // bytes

// What one thread needs besides the operands. Lengths are multiples of W, so every part is aligned as the first.
template <class T>
struct Workspace {
  T *m, *tm, *w, *tw, *gw, *gy, *out, *g, *x, *tx, *gx, *gm, *row, *ones, *zeros, *sink, *total, *error;
  static int64_t size(const PlanColumns<T>& t) {
    Workspace r;
    return r.lay_out(t, nullptr);
  }
  int64_t lay_out(const PlanColumns<T>& t, T* at) {
    constexpr int W = Simd<T>::W;
    T* const begin = at;
    const int64_t numel = (t.padded ? t.wt : t.numel + W - 1) / W * W;
    auto take = [&](int64_t n) {
      T* p = at;
      at = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(at) + sizeof(T) * n);
      return p;
    };
    m = take(EDGES * t.mt), tm = take(EDGES * t.mt), w = take(EDGES * numel), tw = take(EDGES * numel),
    gw = take(EDGES * numel);
    gy = take(EDGES * t.dim2 * W), out = take(t.ot), g = take(t.ot), x = take(t.xt), tx = take(t.xt), gx = take(t.xt);
    gm = take(int64_t(t.max_matrix) * W), row = take(t.max_row), ones = take(t.max_row), zeros = take(t.max_row),
    sink = take(t.max_row), total = take(t.ot), error = take(t.ot);
    return int64_t(reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(begin)) / int64_t(sizeof(T));
  }
  // out [ot] goes to total + error, after `blocks` before it
  void end_block(int64_t ot, int64_t blocks) {
    if (blocks) return fold_row(out, total, error, ot, blocks == 1);
    T* const first = out;
    out = total, total = first;
    fill(out, ot, T(0));
  }
};

// The gradient of x that one thread gathers, edge by edge, in whatever order the sources come
template <class T>
struct GradientSums {
  T *sums, *total, *error;  // [num_src, xt]; total and error: of the blocks that a source with many edges has filled
  // [num_src]: terms of a source up to BLOCK_TERMS; above it, BLOCK_TERMS + the terms since the last block
  unsigned char* terms;
  int64_t xt;

  bool has_blocks(int64_t s) const { return has_long_sums<T> && terms[s] > BLOCK_TERMS; }
  // where one more term of row s is added
  T* next(int64_t s) const {
    if (has_long_sums<T> && ++terms[s] > BLOCK_TERMS) end_block(s);
    return sums + s * xt;
  }
  // adds columns i .. of row s
  void add(int64_t s, int64_t i, Vec<T>& to, Vec<T>& left) const {
    i += s * xt;
    fold(load(sums + i), to, left);
    if (has_blocks(s)) fold(load(total + i), to, left), left += load(error + i);
  }
  __attribute__((noinline)) void end_block(int64_t s) const {
    T *const row = sums + s * xt, *const of_blocks = total + s * xt, *const left = error + s * xt;
    if (terms[s] == BLOCK_TERMS + 1) begin_row(row, of_blocks, xt), begin_row(row, left, xt);  // the first one
    if (terms[s] <= 2 * BLOCK_TERMS) return;
    fold_row(row, of_blocks, left, xt, false);
    terms[s] = BLOCK_TERMS + 1;
  }
};
// Those of all threads. total and error are not touched unless a source has many edges.
template <class T>
struct GradientBuffers {
  Scratch sums, total, error, terms;
  int64_t num_src, xt;

  GradientBuffers(int64_t num_src, int64_t xt, int threads)
      : sums(sizeof(T) * size_t(num_src * xt * threads)),
        total(has_long_sums<T> ? sizeof(T) * size_t(num_src * xt * threads) : 0, false),
        error(has_long_sums<T> ? sizeof(T) * size_t(num_src * xt * threads) : 0, false),
        terms(has_long_sums<T> ? size_t(num_src * threads) : 0),
        num_src(num_src),
        xt(xt) {}
  GradientSums<T> of(int thread) const {
    const int64_t at = num_src * xt * thread;
    return {sums.as<T>() + at, total.as<T>() + at, error.as<T>() + at, terms.as<unsigned char>() + num_src * thread,
            xt};
  }
};

// One pass over all destinations, or over the rows of the plain product
template <class T>
struct Traversal {
  static constexpr int W = Simd<T>::W;
  const ConvArgs<T>& a;
  const PlanColumns<T>& t;
  const PathKernel<T>* kernels;  // [n_paths]
  const T *xt, *txt;  // [num_src, xt] blocked operands (graph only)
  int64_t w_part;  // length of a row of weights over n_paths
  bool stream_gw;

  bool rows() const { return a.rows; }
  int64_t edges_into(int64_t n) const { return rows() ? 1 : a.ptr[n + 1] - a.ptr[n]; }

  // brings a row into the second-level cache
  static void prefetch(const T* row, int64_t length) {
    for (int64_t at = 0; at < length; at += 64 / int64_t(sizeof(T))) {
      __builtin_prefetch(row + at, 0, 2);
      asm volatile("");  // or GCC takes this function for one without effect, and drops it
    }
  }
  // the weights of the edges to come, in n_paths parts: one before each path; edges that are not sorted would wait for
  // memory otherwise
  void prefetch_weights(int64_t next, int q) const {
    const int64_t left = a.num_edges - next, n = left < EDGES ? left : EDGES;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t e = a.order[next + i];
      prefetch(a.w + e * a.w_stride + w_part * q, w_part);
      if (a.pass == BWDBWD) prefetch(a.tw + e * a.tw_stride + w_part * q, w_part);
      if (q == 0) prefetch(a.y + e * a.y_stride, t.dim2);
    }
  }

  // Row n of the output, from all its edges. gx_sums: the thread's, or null
  void row(int64_t n, Workspace<T>& r, const GradientSums<T>* gx_sums) const {
    const int64_t edges = edges_into(n);
    const bool is_long = has_long_sums<T> && a.out && edges > BLOCK_TERMS;
    int64_t blocks = 0;
    if (a.pass != BWD) fill(r.out, t.ot, T(0));
    if (a.pass != FWD && edges) block_row(t.out, t.n_out, a.g + n * a.g_stride, r.g);
    static_assert(BLOCK_TERMS % EDGES == 0);
    for (int64_t first = 0; first < edges; first += EDGES) {
      if (is_long && first && first % BLOCK_TERMS == 0) r.end_block(t.ot, blocks++);
      edge_block(n, first, edges - first < EDGES ? int(edges - first) : EDGES, r, gx_sums);
    }
    if (is_long) end_row(r.out, r.total, r.error, t.ot, blocks == 1);
    if (a.out) unblock_row(t.out, t.n_out, r.out, a.out + n * t.dim_out);
  }

  // `count` of these edges, from number `first` on
  void edge_block(int64_t n, int64_t first, int count, Workspace<T>& r, const GradientSums<T>* gx_sums) const {
    EdgeBlock<T> b;
    int64_t ids[EDGES];
    b.n = count, b.g = r.g, b.out = r.out, b.gm = r.gm, b.row = r.row, b.ones = r.ones, b.zeros = r.zeros,
    b.sink = r.sink;
    b.want_gy = a.gy != nullptr, b.stream_gw = stream_gw;
    for (int q = 0; q < count; ++q) {
      const int64_t e = ids[q] = rows() ? n : a.order[a.ptr[n] + first + q], s = rows() ? n : a.src[e];
      read_edge(q, e, s, r, b, gx_sums);
    }
    if (a.pass != FWD && rows()) fill(r.gx, t.xt, T(0));
    for (int q = 0; q < t.n_paths; ++q) {
      if (!rows()) prefetch_weights(a.ptr[n] + first + count, q);
      kernels[q](t.paths[q], t, b);
    }
    if (a.pass == FWD) return;
    if (rows() && a.gx) unblock_row(t.in1, t.n_in1, r.gx, a.gx + n * t.dim1);
    for (int q = 0; q < count; ++q) write_gradients(ids[q], b.gy[q], b.gw[q]);
  }

  // Operands of edge e, out of row s of x, as number q of a block; where its gradients go
  void read_edge(int q, int64_t e, int64_t s, Workspace<T>& r, EdgeBlock<T>& b, const GradientSums<T>* gx_sums) const {
    const int64_t numel = t.padded ? t.wt : t.numel;
    edge_matrix(t, a.y + e * a.y_stride, r.m + q * t.mt);
    b.m[q] = r.m + q * t.mt;
    b.w[q] = pad_weights(t, a.w + e * a.w_stride, r.w + q * numel);
    if (rows()) block_row(t.in1, t.n_in1, a.x + s * a.x_stride, r.x);
    b.x[q] = rows() ? r.x : xt + s * t.xt;
    if (a.pass == FWD) return;
    b.gx[q] = gx_sums ? gx_sums->next(s) : r.gx;
    b.gw[q] = !a.gw || t.padded ? r.gw + q * numel : a.gw + e * t.numel;
    b.gy[q] = r.gy + q * t.dim2 * W;
    fill(b.gy[q], t.dim2 * W, T(0));
    if (a.pass == BWD) return;
    edge_matrix(t, a.ty + e * a.ty_stride, r.tm + q * t.mt);
    b.tm[q] = r.tm + q * t.mt;
    b.tw[q] = pad_weights(t, a.tw + e * a.tw_stride, r.tw + q * numel);
    if (rows()) block_row(t.in1, t.n_in1, a.tx + s * a.tx_stride, r.tx);
    b.tx[q] = rows() ? r.tx : txt + s * t.xt;
  }

  // Gradients of y (summed over lanes) and of padded weights; others stand in their place already
  void write_gradients(int64_t e, const T* gy, const T* gw) const {
    if (a.gy)
      for (int64_t j = 0; j < t.dim2; ++j) a.gy[e * t.dim2 + j] = sum<T>(load(gy + j * W));
    if (a.gw && t.padded)
      for (int i = 0; i < t.n_paths; ++i)
        for (int u = 0; t.paths[i].w >= 0 && u < t.paths[i].mul; ++u)
          a.gw[e * t.numel + t.paths[i].w + u] = gw[t.paths[i].wt + u];
  }
};

// How many threads are worth it. features: numbers of one blocked copy of x
template <class T>
static int choose_threads(const ConvArgs<T>& a, int64_t features) {
  int threads = a.threads < 1 ? 1 : a.threads;
  if (threads > a.num_dst) threads = a.num_dst < 1 ? 1 : int(a.num_dst);
  if (!a.rows && a.gx) {  // one gradient buffer per thread, together no larger than the weights (and a copy of x)
    const int64_t most = features ? 1 + a.num_edges * a.columns->numel / features : 1;
    if (threads > most) threads = int(most);
  }
  return threads;
}

// gx = sum of what the threads have gathered, in their order
template <class T>
static void sum_buffers(const ConvArgs<T>& a, const GradientBuffers<T>& gathered, int threads) {
  const PlanColumns<T>& t = *a.columns;
  auto body = [&](int thread, int count) {
    const Range range = share(a.num_src, thread, count);
    for (int64_t n = range.begin; n < range.end; ++n) {
      T* const row = gathered.of(0).sums + n * t.xt;
      if (threads > 1 || gathered.of(0).has_blocks(n))
        for (int64_t i = 0; i < t.xt; i += Simd<T>::W) {
          Vec<T> total{}, error{};
          for (int q = 0; q < threads; ++q) gathered.of(q).add(n, i, total, error);
          store(row + i, folded(total, error));
        }
      unblock_row(t.in1, t.n_in1, row, a.gx + n * t.dim1);
    }
  };
  parallel(threads, body);
}

template <class T>
void convolve(const ConvArgs<T>& a) {
  const PlanColumns<T>& t = *a.columns;
  const bool graph = !a.rows;
  const int64_t features = a.num_src * t.xt;
  const int threads = choose_threads(a, features);
  const size_t nodes = graph ? size_t(features) * sizeof(T) : 0;
  Scratch kernels(sizeof(PathKernel<T>) * size_t(t.n_paths)), xt(nodes), txt(a.pass == BWDBWD ? nodes : 0);
  const GradientBuffers<T> gathered(graph && a.gx ? a.num_src : 0, t.xt, threads);
  for (int q = 0; q < t.n_paths; ++q) kernels.as<PathKernel<T>>()[q] = path_kernel<T>(a.pass, t.paths[q]);
  if (graph) block_rows(t, a.x, a.x_stride, a.num_src, xt.as<T>(), threads);
  if (graph && a.pass == BWDBWD) block_rows(t, a.tx, a.tx_stride, a.num_src, txt.as<T>(), threads);
  if (a.out) advise_huge(a.out, size_t(a.num_dst * t.dim_out) * sizeof(T));
  if (a.gw) advise_huge(a.gw, size_t(a.num_edges * t.numel) * sizeof(T));
  const Traversal<T> traversal{
      .a = a,
      .t = t,
      .kernels = kernels.as<PathKernel<T>>(),
      .xt = xt.as<T>(),
      .txt = txt.as<T>(),
      .w_part = t.n_paths ? (t.numel + t.n_paths - 1) / t.n_paths : 0,
      // past the caches only where gw would not stay in them
      .stream_gw = a.gw && !t.padded && t.numel % Simd<T>::W == 0 &&
                   reinterpret_cast<uintptr_t>(a.gw) % Simd<T>::bytes == 0 &&
                   a.num_edges * t.numel * int64_t(sizeof(T)) > STREAM,
  };

  const int64_t workspace = Workspace<T>::size(t) + 2 * 64 / int64_t(sizeof(T));
  Scratch workspaces(size_t(workspace) * sizeof(T) * size_t(threads));
  auto body = [&](int thread, int count) {
    Workspace<T> r;
    r.lay_out(t, workspaces.as<T>() + workspace * thread);
    fill(r.ones, t.max_row, T(1));
    const Range range = graph ? share(a.ptr, a.num_dst, thread, count) : share(a.num_dst, thread, count);
    const GradientSums<T> gx = gathered.of(thread);
    for (int64_t n = range.begin; n < range.end; ++n) traversal.row(n, r, graph && a.gx ? &gx : nullptr);
    streaming_fence();
  };
  parallel(threads, body);
  if (graph && a.gx) sum_buffers(a, gathered, threads);
}
EQTP_INSTANTIATE_KERNEL(convolve, ConvArgs);

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "common/module.h"

namespace py = pybind11;
namespace eqtp {

using P = uintptr_t;  // address of a tensor's first element; 0: absent

// The operands as Python has them
struct ConvCall {
  const ChannelwisePlan& plan;
  int64_t num_src, num_dst, num_edges;
  const std::vector<P>& graph;  // src, ptr, order; empty: rows
  const std::vector<std::pair<P, int64_t>>& in;  // address, row stride of x, y, w [, g [, tx, ty, tw]]
  const std::vector<P>& out;  // out, gx, gy, gw
  int threads;

  template <class T>
  ConvArgs<T> args() const {
    const auto index = [&](size_t i) {
      return i < graph.size() ? reinterpret_cast<const int64_t*>(graph[i]) : nullptr;
    };
    const auto data = [&](size_t i) { return i < in.size() ? reinterpret_cast<const T*>(in[i].first) : nullptr; };
    const auto stride = [&](size_t i) { return i < in.size() ? in[i].second : 0; };
    const auto result = [&](size_t i) { return reinterpret_cast<T*>(out.at(i)); };
    return {.pass = in.size() == 3   ? FWD
                    : in.size() == 4 ? BWD
                                     : BWDBWD,
            .columns = &plan.columns<T>(),
            .num_src = num_src,
            .num_dst = num_dst,
            .num_edges = num_edges,
            .rows = graph.empty(),
            .src = index(0),
            .ptr = index(1),
            .order = index(2),
            .x = data(0),
            .y = data(1),
            .w = data(2),
            .g = data(3),
            .tx = data(4),
            .ty = data(5),
            .tw = data(6),
            .x_stride = stride(0),
            .y_stride = stride(1),
            .w_stride = stride(2),
            .g_stride = stride(3),
            .tx_stride = stride(4),
            .ty_stride = stride(5),
            .tw_stride = stride(6),
            .out = result(0),
            .gx = result(1),
            .gy = result(2),
            .gw = result(3),
            .threads = threads};
  }
};

static void tensor_product_conv(const ChannelwisePlan& plan, int64_t num_src, int64_t num_dst, int64_t num_edges,
                                const std::vector<P>& graph, const std::vector<std::pair<P, int64_t>>& in,
                                const std::vector<P>& out, bool f64, int threads) {
  const ConvCall call{.plan = plan,
                      .num_src = num_src,
                      .num_dst = num_dst,
                      .num_edges = num_edges,
                      .graph = graph,
                      .in = in,
                      .out = out,
                      .threads = threads};
  py::gil_scoped_release nogil;
  with_real(f64, [&](auto real) { EQTP_RUN(convolve, call.args<decltype(real)>()); });
}

EQTP_BINDING(define_tensor_product_conv) {
  py::class_<ChannelwisePlan>(m, "Plan").def(
      py::init<const std::vector<int64_t>&, const std::vector<int64_t>&, const std::vector<int64_t>&,
               const std::vector<double>&, int64_t, int64_t, int64_t, int64_t>());
  m.def("tensor_product_conv", &tensor_product_conv);
}

}  // namespace eqtp
#endif
