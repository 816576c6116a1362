// One path of the channelwise tensor product, specialised for 2 l + 1 of the first operand and of the output (0: known
// at run time only). See path.h for the formulas and plan.h for the blocked layout. Channels u are the lanes;
// M is broadcast.
#include "channelwise/path.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

template <class T, int D1, int D3, bool DIAGONAL>
struct PathPass {
  static constexpr int W = Simd<T>::W;
  static constexpr int N1 = D1 ? D1 : MAX_DIM, N3 = D3 ? D3 : MAX_DIM;
  static constexpr bool SMALL = D1 && D3 && D1 * D3 <= 9;  // gM fits into registers beside the rest
  static constexpr int PAIR = D1 && D3 && D1 + D3 <= 12 ? 2 : 1;  // vectors of channels that share a broadcast of M
  using V = Vec<T>;

  template <int U>
  static inline __attribute__((always_inline)) void fwd_step(int d1, int d3, int v, const Path& p,
                                                             const EdgeBlock<T>& b) {
    T* const out = opaque(b.out + p.o + v * d3 * W);
    V a[U][N3];  // [d3] out
    for (int q = 0; q < U; ++q)
      for (int k = 0; k < d3; ++k) a[q][k] = load(out + (q * d3 + k) * W);
    for (int e = 0, n = b.n; e < n; ++e) {
      const T* const x = opaque(b.x[e] + p.x + v * d1 * W);  // [U, d1, W]
      const T* const m = opaque(b.m[e] + p.m);  // [d3, d1]
      const T* const w = opaque((p.w < 0 ? b.ones : b.w[e] + p.wt) + v * W);
      if constexpr (DIAGONAL) {
        for (int q = 0; q < U; ++q) {
          const V s = load(w + q * W) * m[0];
          for (int k = 0; k < d3; ++k) a[q][k] += s * load(x + (q * d3 + k) * W);
        }
      } else {
        V wx[U][N1];  // [d1]
        for (int q = 0; q < U; ++q)
          for (int i = 0; i < d1; ++i) wx[q][i] = load(w + q * W) * load(x + (q * d1 + i) * W);
        for (int k = 0; k < d3; ++k)
          for (int i = 0; i < d1; ++i)
            for (int q = 0; q < U; ++q) a[q][k] += m[k * d1 + i] * wx[q][i];
      }
    }
    for (int q = 0; q < U; ++q)
      for (int k = 0; k < d3; ++k) store(out + (q * d3 + k) * W, a[q][k]);
  }
  static void fwd(const Path& p, const PlanColumns<T>&, const EdgeBlock<T>& b) {
    const int d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3;
    int v = 0;
    for (; v + PAIR <= p.nv; v += PAIR) fwd_step<PAIR>(d1, d3, v, p, b);
    if (PAIR > 1 && v < p.nv) fwd_step<1>(d1, d3, v, p, b);
  }

  // gy[j] += sum over the path's terms of c gM
  static inline __attribute__((always_inline)) void contract(const Path& p, const PlanColumns<T>& t, const T* gm,
                                                             T* gy) {
    for (int j = 0; j < p.d2; ++j) {
      V a = load(gy + (p.y + j) * W);
      for (int64_t q = t.term_ptr[p.terms + j]; q < t.term_ptr[p.terms + j + 1]; ++q)
        a += t.term_c[q] * load(gm + t.term_m[q] * W);
      store(gy + (p.y + j) * W, a);
    }
  }
  // gM[k, i] = sum_u g[k, u] wx[i, u] for matrices that do not fit into registers; g [nv, d3, W], wx [nv, d1, W]
  static inline __attribute__((always_inline)) void matrix(int d1, int d3, int nv, const T* g, const T* wx, T* gm) {
    for (int i = 0; i < d1; ++i) {
      V a[N3];
      for (int k = 0; k < d3; ++k) a[k] = V{};
      for (int v = 0; v < nv; ++v) {
        const V x = load(wx + (v * d1 + i) * W);
        for (int k = 0; k < d3; ++k) a[k] += x * load(g + (v * d3 + k) * W);
      }
      for (int k = 0; k < d3; ++k) store(gm + (k * d1 + i) * W, a[k]);
    }
  }

  static inline __attribute__((always_inline)) void store_weight_gradient(const EdgeBlock<T>& b, T* gw, V v) {
    if (b.stream_gw) store_streaming(gw, v);
    else store(gw, v);
  }

  static void bwd(const Path& p, const PlanColumns<T>& t, const EdgeBlock<T>& b) {
    const int d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3;
    const bool weighted = p.w >= 0;
    for (int e = 0; e < b.n; ++e) {
      const T *x = b.x[e] + p.x, *w = weighted ? b.w[e] + p.wt : b.ones, *g = b.g + p.o;
      T *gx = b.gx[e] + p.x, *gw = weighted ? b.gw[e] + p.wt : b.sink, *row = b.row;
      const T* const m = opaque(b.m[e] + p.m);
      V gm[SMALL ? N1 * N3 : 1];
      for (auto& v : gm) v = V{};
      for (int v = 0; v < p.nv; ++v, x += d1 * W, gx += d1 * W, row += d1 * W, g += d3 * W, w += W, gw += W) {
        x = opaque(x), gx = opaque(gx), g = opaque(g), row = opaque(row);
        const V we = load(w);
        V q{};
        if constexpr (DIAGONAL) {
          const V s = we * m[0];
          for (int i = 0; i < d1; ++i) {
            const V gi = load(g + i * W);
            store(gx + i * W, load(gx + i * W) + s * gi);
            q += gi * load(x + i * W);
          }
          store_weight_gradient(b, gw, m[0] * q);
          gm[0] += we * q;
        } else {
          V s[N1];  // [d1]
          for (int i = 0; i < d1; ++i) s[i] = V{};
          for (int k = 0; k < d3; ++k) {
            const V gk = load(g + k * W);
            for (int i = 0; i < d1; ++i) s[i] += m[k * d1 + i] * gk;
          }
          for (int i = 0; i < d1; ++i) {
            const V xi = load(x + i * W), wx = we * xi;
            store(gx + i * W, load(gx + i * W) + we * s[i]);
            q += s[i] * xi;
            if constexpr (SMALL) {
              for (int k = 0; k < d3; ++k) gm[k * d1 + i] += load(g + k * W) * wx;
            } else {
              store(row + i * W, wx);
            }
          }
          store_weight_gradient(b, gw, q);
        }
      }
      if (!b.want_gy) continue;
      if constexpr (DIAGONAL) store(b.gm, gm[0]);
      else if constexpr (SMALL)
        for (int i = 0; i < d1 * d3; ++i) store(b.gm + i * W, gm[i]);
      else matrix(d1, d3, p.nv, b.g + p.o, b.row, b.gm);
      contract(p, t, b.gm, b.gy[e]);
    }
  }

  static void bwdbwd(const Path& p, const PlanColumns<T>& t, const EdgeBlock<T>& b) {
    const int d1 = D1 ? D1 : p.d1, d3 = D3 ? D3 : p.d3;
    const bool weighted = p.w >= 0;
    for (int e = 0; e < b.n; ++e) {
      const T *x = b.x[e] + p.x, *w = weighted ? b.w[e] + p.wt : b.ones, *g = b.g + p.o;
      const T *tx = b.tx[e] + p.x, *tw = weighted ? b.tw[e] + p.wt : b.zeros;
      T *gx = b.gx[e] + p.x, *gw = weighted ? b.gw[e] + p.wt : b.sink, *row = b.row, *out = b.out + p.o;
      const T *const m = opaque(b.m[e] + p.m), *const tm = opaque(b.tm[e] + p.m);
      V gm{};
      for (int v = 0; v < p.nv; ++v, w += W, tw += W, gw += W) {
        x = opaque(x), tx = opaque(tx), gx = opaque(gx), g = opaque(g), row = opaque(row), out = opaque(out);
        const V we = load(w), te = load(tw);
        V q{};
        if constexpr (DIAGONAL) {
          const V s = we * m[0], ts = we * tm[0] + te * m[0];
          V tq{};
          for (int i = 0; i < d1; ++i) {
            const V gi = load(g + i * W), xi = load(x + i * W), ti = load(tx + i * W);
            store(gx + i * W, load(gx + i * W) + ts * gi);
            store(out + i * W, load(out + i * W) + s * ti + ts * xi);
            q += gi * xi, tq += gi * ti;
          }
          store_weight_gradient(b, gw, m[0] * tq + tm[0] * q);
          gm += we * tq + te * q;
        } else {
          V wx[N1], wt[N1], s[N1], ts[N1];  // [d1] w x, its derivative, S and its derivative
          for (int i = 0; i < d1; ++i) {
            const V xi = load(x + i * W);
            wx[i] = we * xi, wt[i] = we * load(tx + i * W) + te * xi;
            store(row + i * W, wt[i]);
            s[i] = V{}, ts[i] = V{};
          }
          for (int k = 0; k < d3; ++k) {
            const V gk = load(g + k * W);
            V a = load(out + k * W), ta{};
            for (int i = 0; i < d1; ++i) {
              s[i] += m[k * d1 + i] * gk, ts[i] += tm[k * d1 + i] * gk;
              a += m[k * d1 + i] * wt[i], ta += tm[k * d1 + i] * wx[i];
            }
            store(out + k * W, a + ta);
          }
          for (int i = 0; i < d1; ++i) {
            store(gx + i * W, load(gx + i * W) + we * ts[i] + te * s[i]);
            q += ts[i] * load(x + i * W) + s[i] * load(tx + i * W);
          }
          store_weight_gradient(b, gw, q);
        }
        x += d1 * W, tx += d1 * W, gx += d1 * W, row += d1 * W, g += d3 * W, out += d3 * W;
      }
      if constexpr (DIAGONAL) store(b.gm, gm);
      else matrix(d1, d3, p.nv, b.g + p.o, b.row, b.gm);
      contract(p, t, b.gm, b.gy[e]);
    }
  }

  static PathKernel<T> of(Pass pass) { return pass == FWD ? fwd : pass == BWD ? bwd : bwdbwd; }
};

template <class T, int D1>
static PathKernel<T> by_d3(Pass pass, const Path& p) {
  switch (p.d3) {
    case 1: return PathPass<T, D1, 1, false>::of(pass);
    case 3: return PathPass<T, D1, 3, false>::of(pass);
    case 5: return PathPass<T, D1, 5, false>::of(pass);
    case 7: return PathPass<T, D1, 7, false>::of(pass);
    case 9: return PathPass<T, D1, 9, false>::of(pass);
    default: return PathPass<T, 0, 0, false>::of(pass);
  }
}

template <class T>
static PathKernel<T> path_kernel(Pass pass, const Path& p) {
  if (p.diagonal) switch (p.d1) {
      case 1: return PathPass<T, 1, 1, true>::of(pass);
      case 3: return PathPass<T, 3, 3, true>::of(pass);
      case 5: return PathPass<T, 5, 5, true>::of(pass);
      case 7: return PathPass<T, 7, 7, true>::of(pass);
      default: return PathPass<T, 0, 0, true>::of(pass);
    }
  switch (p.d1) {
    case 1: return by_d3<T, 1>(pass, p);
    case 3: return by_d3<T, 3>(pass, p);
    case 5: return by_d3<T, 5>(pass, p);
    case 7: return by_d3<T, 7>(pass, p);
    case 9: return by_d3<T, 9>(pass, p);
    default: return PathPass<T, 0, 0, false>::of(pass);
  }
}
PathKernel<float> path_kernel_f32(Pass pass, const Path& p) { return path_kernel<float>(pass, p); }
PathKernel<double> path_kernel_f64(Pass pass, const Path& p) { return path_kernel<double>(pass, p); }

}  // namespace eqtp::EQTP_SIMD
#endif
