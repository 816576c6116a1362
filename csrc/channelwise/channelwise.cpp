// The walk over a graph: destinations are dealt to threads in contiguous ranges, a destination's edges are taken EDGES
// at a time, its output row stays in cache and is written once. Gradients of y and w are written per edge; the gradient
// of x is gathered in one buffer per thread and summed in a fixed order. No atomics, so results repeat bit by bit for a
// given number of threads.
#include "channelwise/channelwise.h"

#include "common/parallel.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

// W rows of D numbers, [W, D], to and from D vectors of W lanes, [D, W]: lane l of vector i is number l D + i, so each
// vector is put together from D others by one permutation each. For levels that have such a permutation.
template <class T, int D>
struct Shuffle {
  static constexpr int W = Simd<T>::W;
  static constexpr bool possible = (D == 3 || D == 5 || D == 7) && Simd<T>::bytes >= 32;
  using I = typename Simd<T>::I;
  using N = typename Simd<T>::Index;
  struct Table { N at[D][W], from[D][W]; };
  static constexpr Table blocking() {  // component i, lane l: element l D + i of the row
    Table t{};
    for (int i = 0; i < D; ++i)
      for (int l = 0; l < W; ++l) t.at[i][l] = (l * D + i) % W, t.from[i][l] = (l * D + i) / W;
    return t;
  }
  static constexpr Table unblocking() {  // vector i of the row, lane l: component (i W + l) % D, lane (i W + l) / D
    Table t{};
    for (int i = 0; i < D; ++i)
      for (int l = 0; l < W; ++l) t.at[i][l] = (i * W + l) / D, t.from[i][l] = (i * W + l) % D;
    return t;
  }
  template <const Table& table>
  static inline __attribute__((always_inline)) void apply(const T* in, T* out) {
    Vec<T> v[D];
    for (int q = 0; q < D; ++q) v[q] = load(in + q * W);
    for (int i = 0; i < D; ++i) {
      const I at = *reinterpret_cast<const I*>(table.at[i]), from = *reinterpret_cast<const I*>(table.from[i]);
      Vec<T> a = permute<T>(v[0], at);
      for (int q = 1; q < D; ++q) a = from == q ? permute<T>(v[q], at) : a;
      store(out + i * W, a);
    }
  }
};
template <class T, int D>
static constexpr auto blocking_table = Shuffle<T, D>::blocking();
template <class T, int D>
static constexpr auto unblocking_table = Shuffle<T, D>::unblocking();

// [mul, d] <-> [nv, d, W]: whole blocks through registers, other dimensions and the last channels one by one
template <class T, int D>
static inline __attribute__((always_inline)) void block_slot(const Slot& s, const T* row, T* t) {
  constexpr int W = Simd<T>::W;
  const int d = D ? D : s.d;
  int u = 0;
  if constexpr (Shuffle<T, D>::possible)
    for (; u + W <= s.mul; u += W) Shuffle<T, D>::template apply<blocking_table<T, D>>(row + u * D, t + u * D);
  for (; u < s.mul; ++u)
    for (int i = 0; i < d; ++i) t[u / W * W * d + i * W + u % W] = row[u * d + i];
}
template <class T, int D>
static inline __attribute__((always_inline)) void unblock_slot(const Slot& s, const T* t, T* row) {
  constexpr int W = Simd<T>::W;
  const int d = D ? D : s.d;
  int u = 0;
  if constexpr (Shuffle<T, D>::possible)
    for (; u + W <= s.mul; u += W) Shuffle<T, D>::template apply<unblocking_table<T, D>>(t + u * D, row + u * D);
  for (; u < s.mul; ++u)
    for (int i = 0; i < d; ++i) row[u * d + i] = t[u / W * W * d + i * W + u % W];
}
#define EQTP_BY_DIM(f, s, ...)              \
  switch ((s).d) {                          \
    case 1: f<T, 1>(s, __VA_ARGS__); break; \
    case 3: f<T, 3>(s, __VA_ARGS__); break; \
    case 5: f<T, 5>(s, __VA_ARGS__); break; \
    case 7: f<T, 7>(s, __VA_ARGS__); break; \
    default: f<T, 0>(s, __VA_ARGS__);       \
  }
// a mul_ir row to a blocked row; padding lanes of `t` must be zero already
template <class T>
static void block_row(const Slot* slots, int n, const T* row, T* t) {
  for (int i = 0; i < n; ++i) EQTP_BY_DIM(block_slot, slots[i], row + slots[i].offset, t + slots[i].toffset);
}
template <class T>
static void unblock_row(const Slot* slots, int n, const T* t, T* row) {
  for (int i = 0; i < n; ++i) EQTP_BY_DIM(unblock_slot, slots[i], t + slots[i].toffset, row + slots[i].offset);
}
template <class T>
static inline __attribute__((always_inline)) void fill(T* p, int64_t n, T v) {
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
static const T* weights(const PlanColumns<T>& p, const T* row, T* t) {
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
  T *m, *tm, *w, *tw, *gw, *gy, *out, *g, *x, *tx, *gx, *gm, *row, *ones, *zeros, *sink;
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
    sink = take(t.max_row);
    return int64_t(reinterpret_cast<uintptr_t>(at) - reinterpret_cast<uintptr_t>(begin)) / int64_t(sizeof(T));
  }
};

template <class T>
struct Traversal {
  static constexpr int W = Simd<T>::W;
  const ConvArgs<T>& a;
  const PlanColumns<T>& t;
  const Pass pass;
  const PathKernel<T>* kernels;  // [n_paths]
  const T *xt, *txt;  // [num_src, xt] blocked operands (graph only)
  T* gxt;  // [threads, num_src, xt] or null
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
      if (pass == BWDBWD) prefetch(a.tw + e * a.tw_stride + w_part * q, w_part);
      if (q == 0) prefetch(a.y + e * a.y_stride, t.dim2);
    }
  }

  void row(int64_t n, Workspace<T>& r, T* gx_buffer) const {
    const int64_t edges = edges_into(n);
    if (pass != BWD) fill(r.out, t.ot, T(0));
    if (pass != FWD && edges) block_row(t.out, t.n_out, a.g + n * a.g_stride, r.g);
    for (int64_t first = 0; first < edges; first += EDGES)
      edge_block(n, first, edges - first < EDGES ? int(edges - first) : EDGES, r, gx_buffer);
    if (a.out) unblock_row(t.out, t.n_out, r.out, a.out + n * t.dim_out);
  }

  void edge_block(int64_t n, int64_t first, int count, Workspace<T>& r, T* gx_buffer) const {
    EdgeBlock<T> b;
    int64_t ids[EDGES];
    const int64_t numel = t.padded ? t.wt : t.numel;
    b.n = count, b.g = r.g, b.out = r.out, b.gm = r.gm, b.row = r.row, b.ones = r.ones, b.zeros = r.zeros,
    b.sink = r.sink;
    b.want_gy = a.gy != nullptr, b.stream_gw = stream_gw;
    for (int q = 0; q < count; ++q) {
      const int64_t e = ids[q] = rows() ? n : a.order[a.ptr[n] + first + q], s = rows() ? n : a.src[e];
      edge_matrix(t, a.y + e * a.y_stride, r.m + q * t.mt);
      b.m[q] = r.m + q * t.mt;
      b.w[q] = weights(t, a.w + e * a.w_stride, r.w + q * numel);
      if (rows()) block_row(t.in1, t.n_in1, a.x + n * a.x_stride, r.x);
      b.x[q] = rows() ? r.x : xt + s * t.xt;
      if (pass == FWD) continue;
      b.gx[q] = gx_buffer ? gx_buffer + s * t.xt : r.gx;
      b.gw[q] = !a.gw || t.padded ? r.gw + q * numel : a.gw + e * t.numel;
      b.gy[q] = r.gy + q * t.dim2 * W;
      fill(b.gy[q], t.dim2 * W, T(0));
      if (pass == BWD) continue;
      edge_matrix(t, a.ty + e * a.ty_stride, r.tm + q * t.mt);
      b.tm[q] = r.tm + q * t.mt;
      b.tw[q] = weights(t, a.tw + e * a.tw_stride, r.tw + q * numel);
      if (rows()) block_row(t.in1, t.n_in1, a.tx + n * a.tx_stride, r.tx);
      b.tx[q] = rows() ? r.tx : txt + s * t.xt;
    }
    if (pass != FWD && rows()) fill(r.gx, t.xt, T(0));
    for (int q = 0; q < t.n_paths; ++q) {
      if (!rows()) prefetch_weights(a.ptr[n] + first + count, q);
      kernels[q](t.paths[q], t, b);
    }
    if (pass == FWD) return;
    if (rows() && a.gx) unblock_row(t.in1, t.n_in1, r.gx, a.gx + n * t.dim1);
    for (int q = 0; q < count; ++q) {
      if (a.gy)
        for (int64_t j = 0; j < t.dim2; ++j) a.gy[ids[q] * t.dim2 + j] = sum<T>(load(b.gy[q] + j * W));
      if (a.gw && t.padded)
        for (int i = 0; i < t.n_paths; ++i)
          for (int u = 0; t.paths[i].w >= 0 && u < t.paths[i].mul; ++u)
            a.gw[ids[q] * t.numel + t.paths[i].w + u] = b.gw[q][t.paths[i].wt + u];
    }
  }
};

template <class T>
static void block_all(const PlanColumns<T>& t, const T* x, int64_t stride, int64_t n, T* xt, int threads) {
  auto body = [&](int thread, int count) {
    const Range r = share(n, thread, count);
    for (int64_t i = r.begin; i < r.end; ++i) block_row(t.in1, t.n_in1, x + i * stride, xt + i * t.xt);
  };
  parallel(threads, body);
}

template <class T>
static void conv(Pass pass, const ConvArgs<T>& a, PathKernel<T> (*kernel_of)(Pass, const Path&)) {
  const PlanColumns<T>& t = *a.columns;
  const bool graph = !a.rows;
  int threads = a.threads < 1 ? 1 : a.threads;
  if (threads > a.num_dst) threads = a.num_dst < 1 ? 1 : int(a.num_dst);
  const int64_t features = a.num_src * t.xt;  // elements of one blocked copy of x
  if (graph && a.gx) {  // one gradient buffer per thread, together no larger than the weights (and a copy of x)
    const int64_t most = features ? 1 + a.num_edges * t.numel / features : 1;
    if (threads > most) threads = int(most);
  }
  const size_t nodes = graph ? size_t(features) * sizeof(T) : 0;
  Scratch kernels(sizeof(PathKernel<T>) * size_t(t.n_paths)), xt(nodes), txt(pass == BWDBWD ? nodes : 0),
      gxt(a.gx ? nodes * threads : 0);
  Traversal<T> traversal{a,          t,           pass,        kernels.as<PathKernel<T>>(),
                         xt.as<T>(), txt.as<T>(), gxt.as<T>(), t.n_paths ? (t.numel + t.n_paths - 1) / t.n_paths : 0,
                         false};
  // past the caches only where gw would not stay in them
  traversal.stream_gw = a.gw && !t.padded && t.numel % Simd<T>::W == 0 &&
                        reinterpret_cast<uintptr_t>(a.gw) % Simd<T>::bytes == 0 &&
                        a.num_edges * t.numel * int64_t(sizeof(T)) > STREAM;
  for (int q = 0; q < t.n_paths; ++q) kernels.as<PathKernel<T>>()[q] = kernel_of(pass, t.paths[q]);
  if (graph) block_all(t, a.x, a.x_stride, a.num_src, xt.as<T>(), threads);
  if (graph && pass == BWDBWD) block_all(t, a.tx, a.tx_stride, a.num_src, txt.as<T>(), threads);
  if (a.out) advise_huge(a.out, size_t(a.num_dst * t.dim_out) * sizeof(T));
  if (a.gw) advise_huge(a.gw, size_t(a.num_edges * t.numel) * sizeof(T));

  const int64_t workspace = Workspace<T>::size(t) + 2 * 64 / int64_t(sizeof(T));
  Scratch workspaces(size_t(workspace) * sizeof(T) * size_t(threads));
  auto body = [&](int thread, int count) {
    Workspace<T> r;
    r.lay_out(t, workspaces.as<T>() + workspace * thread);
    fill(r.ones, t.max_row, T(1));
    const Range range = graph ? share(a.ptr, a.num_dst, thread, count) : share(a.num_dst, thread, count);
    T* const gx = graph && a.gx ? gxt.as<T>() + features * thread : nullptr;
    for (int64_t n = range.begin; n < range.end; ++n) traversal.row(n, r, gx);
    streaming_fence();
  };
  parallel(threads, body);

  if (!(graph && a.gx)) return;
  auto total = [&](int thread, int count) {  // gx = sum of the threads' buffers, in their order
    const Range range = share(a.num_src, thread, count);
    T* const buffers = gxt.as<T>();
    for (int64_t n = range.begin; n < range.end; ++n) {
      T* const first = buffers + n * t.xt;
      for (int q = 1; q < threads; ++q)
        for (int64_t i = 0; i < t.xt; i += Simd<T>::W)
          store(first + i, load(first + i) + load(first + q * features + i));
      unblock_row(t.in1, t.n_in1, first, a.gx + n * t.dim1);
    }
  };
  parallel(threads, total);
}
void conv_f32(Pass pass, const ConvArgs<float>& a) { conv(pass, a, &path_kernel_f32); }
void conv_f64(Pass pass, const ConvArgs<double>& a) { conv(pass, a, &path_kernel_f64); }

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include <pybind11/stl.h>

#include "common/module.h"

namespace py = pybind11;
namespace eqtp {

using P = uintptr_t;  // address of a tensor's first element; 0: absent

template <class T>
static ConvArgs<T> arguments(const ChannelwisePlan& plan, int64_t num_src, int64_t num_dst, int64_t num_edges,
                             const std::vector<P>& graph, const std::vector<std::pair<P, int64_t>>& in,
                             const std::vector<P>& out, int threads) {
  auto index = [&](size_t i) { return i < graph.size() ? reinterpret_cast<const int64_t*>(graph[i]) : nullptr; };
  auto data = [&](size_t i) { return i < in.size() ? reinterpret_cast<const T*>(in[i].first) : nullptr; };
  auto stride = [&](size_t i) { return i < in.size() ? in[i].second : 0; };
  auto result = [&](size_t i) { return reinterpret_cast<T*>(out.at(i)); };
  return {&plan.columns<T>(),
          num_src,
          num_dst,
          num_edges,
          graph.empty(),
          index(0),
          index(1),
          index(2),
          data(0),
          data(1),
          data(2),
          data(3),
          data(4),
          data(5),
          data(6),
          stride(0),
          stride(1),
          stride(2),
          stride(3),
          stride(4),
          stride(5),
          stride(6),
          result(0),
          result(1),
          result(2),
          result(3),
          threads};
}

// in: (address, row stride) of x, y, w [, g [, tx, ty, tw]]; out: addresses of out, gx, gy, gw
static void convolve(const ChannelwisePlan& plan, int64_t num_src, int64_t num_dst, int64_t num_edges,
                     const std::vector<P>& graph, const std::vector<std::pair<P, int64_t>>& in,
                     const std::vector<P>& out, bool f64, int threads) {
  const Pass pass = in.size() == 3 ? FWD : in.size() == 4 ? BWD : BWDBWD;
  py::gil_scoped_release nogil;
  if (f64) EQTP_PICK(conv_f64)(pass, arguments<double>(plan, num_src, num_dst, num_edges, graph, in, out, threads));
  else EQTP_PICK(conv_f32)(pass, arguments<float>(plan, num_src, num_dst, num_edges, graph, in, out, threads));
}

EQTP_BINDING(define_tensor_product_conv) {
  py::class_<ChannelwisePlan>(m, "Plan").def(
      py::init<const std::vector<int64_t>&, const std::vector<int64_t>&, const std::vector<int64_t>&,
               const std::vector<double>&, int64_t, int64_t, int64_t, int64_t>());
  m.def("tensor_product_conv", &convolve);
}

}  // namespace eqtp
#endif
