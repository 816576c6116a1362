// The channelwise tensor product on the GPU, driven by tables: one compiled kernel for every plan. The family "native"
// runs it where the specialised kernels (channelwise.cuh) cannot be compiled; with one edge per row it is the plain
// product. Formulas: path.h.
//
// Work: a *group* is one block of the output (fwd) or of x (bwd) with all paths that touch it, for 32 channels, one per
// lane. The warps of a thread block share the edges of one row and add up in shared memory in a fixed order, a row of
// many edges in blocks (common/long_sums.cuh); rows of the plain product have a warp each. No atomics.
//   fwd  walks the edges into a destination; its sums stay in registers.
//   bwd  walks the edges out of a source (the transposed graph). The gradient of w is written per edge; that of y is a
//        small matrix product over the lanes in shared memory, per group, and sum_groups_kernel adds the groups.
//   With TANGENT both are differentiated along (tx, ty, tw): the second order.
// M, the coefficients contracted with y, is built per edge by all lanes; an entry of it has at most two terms (real
// bases couple m1, m3 to |m1| +- |m3|).
//
// Floor: weights and their gradient, once each, over the bandwidth. What stands above it: M is built anew for every 32
// channels and read from shared memory (one 16-byte load per four multiply-adds), rows of x and g are read with stride
// 2 l + 1. Half the speed of the specialised kernels is the aim, where nothing has been measured yet.
#pragma once
#include "channelwise/walk_columns.cuh"
#include "common/long_sums.cuh"

namespace eqtp::table_driven {

template <class R>
constexpr int WIDTH = 16 / int(sizeof(R));  // numbers in 16 bytes
template <class R>
constexpr int PITCH =
    LANES + WIDTH<R>;  // of rows [LANES] in shared memory: those of neighbouring lanes lie in other banks
template <int K>
constexpr int PADDED = K == 1 ? 1 : (K + 3) / 4 * 4;

template <class R>
struct alignas(16) Pack {
  R v[16 / sizeof(R)];
};
// v[0 : PADDED<K>] from shared memory
template <int K, class R>
__device__ __forceinline__ void read_row(const R* m, R* v) {
  if constexpr (K == 1) v[0] = m[0];
  else
    each<0, PADDED<K> / WIDTH<R>>([&](auto q) {
      const Pack<R> a = reinterpret_cast<const Pack<R>*>(m)[q];
      each<0, WIDTH<R>>([&](auto i) { v[q * WIDTH<R> + i] = a.v[i]; });
    });
}

// M of an edge for all paths of a group, by all lanes
template <class T, class R>
__device__ __forceinline__ void build_matrix(const WalkColumns<R>& t, const ChannelGroup& u, const T* y, int lane,
                                             R* m) {
  const int* const columns = t.columns + 2 * Index(u.m);
  const R* const terms = t.terms + 2 * Index(u.m);
  EQTP_LOOP
  for (int q = lane; q < u.count; q += LANES)
    m[q] = fused(terms[2 * q], R(read(y[columns[2 * q]])), terms[2 * q + 1] * R(read(y[columns[2 * q + 1]])));
}

// Asks for what is at this address, which will be read soon
__device__ __forceinline__ void prefetch(const void* p) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#else
  (void)p;
#endif
}

// Which edges are this warp's, of block `turn` of those of a row
struct EdgeRange {
  Index at, end;
  int step;
  BlockOfSum block;
};
template <class T>
__device__ __forceinline__ EdgeRange edges_of(const Args<T>& a, Index row, int turn, int warp, int warps) {
  if (!a.ptr) return {row, row < a.rows ? row + 1 : row, 1, {true, true}};
  const Places p = places_of<Real<T>>(a.ptr, row, turn, warps);
  return {p.begin + warp, p.end, warps, p.block};
}

// Weights come from memory while the edge before theirs is worked on
template <bool TANGENT, class T>
__device__ __forceinline__ void prefetch_weights(const WalkColumns<Real<T>>& t, const Args<T>& a, const ChannelGroup& u,
                                                 const EdgeRange& edges, Index at, int channel) {
  at += edges.step;
  if (at >= edges.end || channel >= u.mul) return;
  const Index e = a.order[at];
  EQTP_LOOP
  for (int q = u.path; q < u.path_end; ++q) {
    const int w = t.paths[q].w;
    if (w >= 0) prefetch(a.w + e * a.w_stride + w + channel);
    if (TANGENT && w >= 0) prefetch(a.tw + e * a.tw_stride + w + channel);
  }
}

// The warps' sums [LANES, d] at `shared` -> components k .. k + d - 1 of the channels of a block
template <class T, class R, int N>
__device__ __forceinline__ void write_block(const Args<T>& a, const ChannelGroup& u, int k, int d, Index row, T* to,
                                            const R* shared, int space, LongSums<R, N>& sums, BlockOfSum block) {
  const int warp = int(threadIdx.x) / LANES, lane = int(threadIdx.x) % LANES, threads = int(blockDim.x);
  const int channels = u.mul - u.u < LANES ? u.mul - u.u : LANES;
  if (a.ptr) {
    __syncthreads();
    int n = 0;
    EQTP_LOOP
    for (int q = int(threadIdx.x); q < channels * d; q += threads, ++n) {
      R sum = shared[q];
      EQTP_LOOP
      for (int v = 1; v < threads / LANES; ++v) sum += shared[v * space + q];
      sum = sums.add(n, sum, block);
      if (block.last && k + q % d < u.d) write(to + Index(u.u + q / d) * u.d + k + q % d, sum);
    }
    __syncthreads();
  } else {
    __syncwarp();
    EQTP_LOOP
    for (int q = lane; row < a.rows && q < channels * d; q += LANES)
      if (k + q % d < u.d) write(to + Index(u.u + q / d) * u.d + k + q % d, shared[warp * space + q]);
    __syncwarp();
  }
}

// ----------------------------------------------------------------------------------------------------------------
//   the output
// Adds block `turn` of the edges of a row; returns whether there are more
template <int K, bool TANGENT, class T>
__device__ __forceinline__ bool outputs_of_group(const WalkColumns<Real<T>>& t, const Args<T>& a, const Space& s,
                                                 const ChannelGroup& u, Index row, int turn, Real<T>* shared,
                                                 LongSums<Real<T>, TILE>& sums) {
  using R = Real<T>;
  constexpr int KP = PADDED<K>;
  const int lane = int(threadIdx.x) % LANES, warp = int(threadIdx.x) / LANES, channel = u.u + lane;
  const bool here = channel < u.mul;
  R *const own = shared + warp * s.size, *const m = own + s.m, *const tm = own + s.tm;
  R sum[K];  // components u.k .. of this channel
  each<0, K>([&](auto k) { sum[k] = 0; });
  const EdgeRange edges = edges_of(a, row, turn, warp, int(blockDim.x) / LANES);
  EQTP_LOOP
  for (Index at = edges.at; at < edges.end; at += edges.step) {
    const Index e = a.ptr ? a.order[at] : at, from = a.ptr ? a.other[e] : at;
    prefetch_weights<TANGENT>(t, a, u, edges, at, channel);
    build_matrix(t, u, a.y + e * a.y_stride, lane, m);
    if constexpr (TANGENT) build_matrix(t, u, a.ty + e * a.ty_stride, lane, tm);
    __syncwarp();
    EQTP_LOOP
    for (int q = u.path; here && q < u.path_end; ++q) {
      const TablePath p = t.paths[q];
      const T* const x = a.x + from * a.x_stride + p.row + channel * p.d;
      const R w = p.w < 0 ? R(1) : R(read(a.w[e * a.w_stride + p.w + channel]));
      if constexpr (TANGENT) {
        const T* const tx = a.tx + from * a.tx_stride + p.row + channel * p.d;
        const R tw = p.w < 0 ? R(0) : R(read(a.tw[e * a.tw_stride + p.w + channel]));
        EQTP_LOOP
        for (int i = 0; i < p.d; ++i) {
          const R xi = read(x[i]), wx = w * xi, wt = fused(w, R(read(tx[i])), tw * xi);
          R v[KP], tv[KP];
          read_row<K>(m + p.m + i * KP, v);
          read_row<K>(tm + p.m + i * KP, tv);
          each<0, K>([&](auto k) { sum[k] = fused(v[k], wt, fused(tv[k], wx, sum[k])); });
        }
      } else {
        EQTP_LOOP
        for (int i = 0; i < p.d; ++i) {
          const R wx = w * R(read(x[i]));
          R v[KP];
          read_row<K>(m + p.m + i * KP, v);
          each<0, K>([&](auto k) { sum[k] = fused(v[k], wx, sum[k]); });
        }
      }
    }
    __syncwarp();
  }
  each<0, K>([&](auto k) { own[lane * K + k] = sum[k]; });
  write_block(a, u, u.k, K, row, a.out + row * a.dim3 + u.row, shared, s.size, sums, edges.block);
  return !edges.block.last;
}

template <bool TANGENT, class T>
__global__ void __launch_bounds__(LANES* MAX_WARPS, sizeof(Real<T>) == 8 || TANGENT ? 5 : 7)
    tensor_product_fwd_kernel(WalkColumns<Real<T>> t, Args<T> a, Space s) {
  EQTP_DYN_SHARED(Real<T>, shared);  // [warps, s.size]
  const int warps = int(blockDim.x) / LANES, warp = int(threadIdx.x) / LANES;
  const Index blocks_of_rows = a.ptr ? a.rows : (a.rows + warps - 1) / warps;
  LongSums<Real<T>, TILE> sums;
  int turn = 0;
  for (Index b = blockIdx.x; b < blocks_of_rows * t.num_groups;) {
    const ChannelGroup u = t.groups[b % t.num_groups];
    const Index row = a.ptr ? b / t.num_groups : b / t.num_groups * warps + warp;
    bool more;
    switch (u.d) {
      case 1: more = outputs_of_group<1, TANGENT>(t, a, s, u, row, turn, shared, sums); break;
      case 3: more = outputs_of_group<3, TANGENT>(t, a, s, u, row, turn, shared, sums); break;
      case 5: more = outputs_of_group<5, TANGENT>(t, a, s, u, row, turn, shared, sums); break;
      case 7: more = outputs_of_group<7, TANGENT>(t, a, s, u, row, turn, shared, sums); break;
      default: more = outputs_of_group<TILE, TANGENT>(t, a, s, u, row, turn, shared, sums);
    }
    turn = more ? turn + 1 : 0;
    if (!more) b += gridDim.x;
  }
}

// ----------------------------------------------------------------------------------------------------------------
//   the gradients
// Components of x that a lane holds, and (MANY: more than it can hold) the parts of the block; sums of the gradient of
// x stay in shared memory then
template <int I, bool MANY, bool TANGENT, class T>
struct Gradients {
  using R = Real<T>;
  static constexpr int IP = PADDED<I>, PITCH = table_driven::PITCH<R>;
  const WalkColumns<R>& t;
  const Args<T>& a;
  const ChannelGroup& u;
  const int lane, channel;
  const bool here;
  R* const sums;  // [LANES, d]
  R *const m, *const tm, *const gm;  // [count] M, its derivative, its gradient
  R *const x, *const tx, *const g, *const tg;  // [d, PITCH]
  R sum[I];

  __device__ Gradients(const WalkColumns<R>& t, const Args<T>& a, const Space& s, const ChannelGroup& u, R* own)
      : t(t),
        a(a),
        u(u),
        lane(int(threadIdx.x) % LANES),
        channel(u.u + lane),
        here(channel < u.mul),
        sums(own),
        m(own + s.m),
        tm(own + s.tm),
        gm(own + s.gm),
        x(own + s.x),
        tx(own + s.tx),
        g(own + s.g),
        tg(own + s.tg) {}

  __device__ __forceinline__ int parts() const { return MANY ? (u.d + TILE - 1) / TILE : 1; }

  __device__ __forceinline__ void begin(Index row) {
    each<0, I>([&](auto i) { sum[i] = 0; });
    EQTP_LOOP
    for (int i = 0; i < (MANY ? u.d : I); ++i) {
      const bool valid = here && row < a.rows;
      x[i * PITCH + lane] = valid ? R(read(a.x[row * a.x_stride + u.row + Index(channel) * u.d + i])) : R(0);
      if constexpr (TANGENT)
        tx[i * PITCH + lane] = valid ? R(read(a.tx[row * a.tx_stride + u.row + Index(channel) * u.d + i])) : R(0);
      if constexpr (MANY) sums[lane * u.d + i] = 0;
    }
  }

  // One path, one edge: adds to the gradient of x, leaves w g (and its derivative) in g, tg; returns the gradient of w
  __device__ __forceinline__ R path(const TablePath& p, const T* row, R w, R tw) {
    R gw = 0;
    EQTP_LOOP
    for (int part = 0; part < parts(); ++part) {
      R s[I], ts[I];
      each<0, I>([&](auto i) { s[i] = 0, ts[i] = 0; });
      const int first = p.m + part * p.d * IP;
      EQTP_LOOP
      for (int k = 0; k < p.d; ++k) {
        const R gk = here ? R(read(row[p.row + channel * p.d + k])) : R(0);
        if (part == 0) g[k * PITCH + lane] = w * gk;
        R v[IP];
        read_row<I>(m + first + k * IP, v);
        each<0, I>([&](auto i) { s[i] = fused(v[i], gk, s[i]); });
        if constexpr (TANGENT) {
          if (part == 0) tg[k * PITCH + lane] = tw * gk;
          read_row<I>(tm + first + k * IP, v);
          each<0, I>([&](auto i) { ts[i] = fused(v[i], gk, ts[i]); });
        }
      }
      each<0, I>([&](auto i) {
        const int at = part * TILE + i;
        if (MANY && at >= u.d) return;
        R add = w * s[i];
        if constexpr (TANGENT) {
          gw = fused(ts[i], x[at * PITCH + lane], fused(s[i], tx[at * PITCH + lane], gw));
          add = fused(w, ts[i], tw * s[i]);
        } else {
          gw = fused(s[i], x[at * PITCH + lane], gw);
        }
        if constexpr (MANY) sums[lane * u.d + at] += add;
        else sum[i] += add;
      });
    }
    return gw;
  }

  // gM[k, i] of a path: sums over the channels, an entry per lane
  __device__ __forceinline__ void matrix(const TablePath& p) {
    __syncwarp();
    EQTP_LOOP
    for (int q = lane; q < parts() * p.d * IP; q += LANES) {
      const int k = q / IP % p.d, i = q / (IP * p.d) * TILE + q % IP;
      if (i >= u.d) continue;
      R v = 0;
      EQTP_LOOP
      for (int c = 0; c < LANES; c += WIDTH<R>) v = dot(g + k * PITCH + c, (TANGENT ? tx : x) + i * PITCH + c, v);
      if constexpr (TANGENT) EQTP_LOOP
      for (int c = 0; c < LANES; c += WIDTH<R>) v = dot(tg + k * PITCH + c, x + i * PITCH + c, v);
      gm[p.m + q] = v;
    }
    __syncwarp();
  }
  static __device__ __forceinline__ R dot(const R* p, const R* q, R v) {
    const Pack<R> b = *reinterpret_cast<const Pack<R>*>(p), c = *reinterpret_cast<const Pack<R>*>(q);
    each<0, WIDTH<R>>([&](auto i) { v = fused(b.v[i], c.v[i], v); });
    return v;
  }

  __device__ __forceinline__ void edge(Index e, Index to, int group) {
    build_matrix(t, u, a.y + e * a.y_stride, lane, m);
    if constexpr (TANGENT) build_matrix(t, u, a.ty + e * a.ty_stride, lane, tm);
    __syncwarp();
    EQTP_LOOP
    for (int q = u.path; q < u.path_end; ++q) {
      const TablePath p = t.paths[q];
      const bool weighted = p.w >= 0;
      const R w = !weighted ? R(1) : here ? R(read(a.w[e * a.w_stride + p.w + channel])) : R(0);
      const R tw = TANGENT && weighted && here ? R(read(a.tw[e * a.tw_stride + p.w + channel])) : R(0);
      const R gw = path(p, a.g + to * a.g_stride, w, tw);
      if (weighted && here && a.gw) write(a.gw + e * a.numel + p.w + channel, gw);
      if (a.gy) matrix(p);
    }
    __syncwarp();
    if (!a.gy) return;
    const int* const ptr = t.y_ptr + u.y;
    EQTP_LOOP
    for (int j = lane; j < t.dim2; j += LANES) {
      R v = 0;
      EQTP_LOOP
      for (int q = ptr[j]; q < ptr[j + 1]; ++q) v = fused(t.y_term[q], gm[t.y_entry[q]], v);
      a.gy[(group * a.num_edges + e) * t.dim2 + j] = v;
    }
    __syncwarp();
  }
};

// As outputs_of_group
template <int I, bool MANY, bool TANGENT, class T>
__device__ __forceinline__ bool gradients_of_group(const WalkColumns<Real<T>>& t, const Args<T>& a, const Space& s,
                                                   int group, Index row, int turn, Real<T>* shared,
                                                   LongSums<Real<T>, MAX_DIM>& sums) {
  const ChannelGroup u = t.groups[group];
  const int warp = int(threadIdx.x) / LANES;
  Gradients<I, MANY, TANGENT, T> gradients(t, a, s, u, shared + warp * s.size);
  gradients.begin(row);
  __syncwarp();
  const EdgeRange edges = edges_of(a, row, turn, warp, int(blockDim.x) / LANES);
  EQTP_LOOP
  for (Index at = edges.at; at < edges.end; at += edges.step) {
    const Index e = a.ptr ? a.order[at] : at;
    prefetch_weights<TANGENT>(t, a, u, edges, at, gradients.channel);
    gradients.edge(e, a.ptr ? a.other[e] : at, group);
  }
  if constexpr (!MANY) each<0, I>([&](auto i) { gradients.sums[gradients.lane * I + i] = gradients.sum[i]; });
  if (a.gx) write_block(a, u, 0, MANY ? u.d : I, row, a.gx + row * a.dim1 + u.row, shared, s.size, sums, edges.block);
  else __syncwarp();
  return !edges.block.last;
}

template <bool TANGENT, class T>
__global__ void __launch_bounds__(LANES* MAX_WARPS, sizeof(Real<T>) == 8 ? 3
                                                    : TANGENT            ? 4
                                                                         : 6)
    tensor_product_bwd_kernel(WalkColumns<Real<T>> t, Args<T> a, Space s) {
  EQTP_DYN_SHARED(Real<T>, shared);  // [warps, s.size]
  const int warps = int(blockDim.x) / LANES, warp = int(threadIdx.x) / LANES;
  const Index blocks_of_rows = a.ptr ? a.rows : (a.rows + warps - 1) / warps;
  LongSums<Real<T>, MAX_DIM> sums;
  int turn = 0;
  for (Index b = blockIdx.x; b < blocks_of_rows * t.num_groups;) {
    const int group = int(b % t.num_groups);
    const Index row = a.ptr ? b / t.num_groups : b / t.num_groups * warps + warp;
    bool more;
    switch (t.groups[group].d) {
      case 1: more = gradients_of_group<1, false, TANGENT>(t, a, s, group, row, turn, shared, sums); break;
      case 3: more = gradients_of_group<3, false, TANGENT>(t, a, s, group, row, turn, shared, sums); break;
      case 5: more = gradients_of_group<5, false, TANGENT>(t, a, s, group, row, turn, shared, sums); break;
      case 7: more = gradients_of_group<7, false, TANGENT>(t, a, s, group, row, turn, shared, sums); break;
      default: more = gradients_of_group<TILE, true, TANGENT>(t, a, s, group, row, turn, shared, sums);
    }
    turn = more ? turn + 1 : 0;
    if (!more) b += gridDim.x;
  }
}

// gy [count] = sum of the groups' shares [groups, count], in their order
template <class T>
__global__ void __launch_bounds__(256) sum_groups_kernel(const Real<T>* shares, int groups, Index count, T* gy) {
  for (Index q = Index(blockIdx.x) * blockDim.x + threadIdx.x; q < count; q += Index(gridDim.x) * blockDim.x) {
    Real<T> sum = 0;
    EQTP_LOOP
    for (int u = 0; u < groups; ++u) sum += shares[u * count + q];
    write(gy + q, sum);
  }
}

}  // namespace eqtp::table_driven
