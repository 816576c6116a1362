#ifndef EQTP_SIMD  // one copy serves all levels
#include "channelwise/plan.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "common/simd.h"

namespace eqtp {

static std::vector<Slot> slots(const std::vector<int64_t>& columns, int W, int64_t& row) {
  std::vector<Slot> s;
  row = 0;
  for (size_t i = 0; i < columns.size(); i += 3) {
    const int mul = int(columns[i + 1]), d = int(columns[i + 2]), nv = (mul + W - 1) / W;
    s.push_back({columns[i], row, mul, d, nv});
    row += int64_t(d) * nv * W;
  }
  return s;
}

// C[i, 0, k] = c delta_ik ?
static bool is_diagonal(const double* c, int d1, int d2, int d3) {
  if (d2 != 1 || d1 != d3) return false;
  for (int i = 0; i < d1; ++i)
    for (int k = 0; k < d3; ++k)
      if (std::abs(c[i * d3 + k] - (i == k ? c[0] : 0.0)) > 1e-14 * std::abs(c[0])) return false;
  return true;
}

template <class T>
static void build(PlanColumnsOwner<T>& o, const std::vector<int64_t>& in1, const std::vector<int64_t>& out,
                  const std::vector<int64_t>& columns, const std::vector<double>& c, int64_t dim1, int64_t dim2,
                  int64_t dim_out, int64_t numel) {
  const int W = simd_bytes() / int(sizeof(T));
  PlanColumns<T>& v = o.view;
  v = PlanColumns<T>{};
  o.in1 = slots(in1, W, v.xt);
  o.out = slots(out, W, v.ot);
  std::vector<int64_t> first;  // where each path's [d1, d2, d3] begins in c
  int64_t at = 0;
  for (size_t r = 0; r < columns.size(); r += 5) {
    const Slot &a = o.in1.at(columns[r]), &b = o.out.at(columns[r + 3]);
    Path p{};
    p.d1 = a.d, p.d2 = int(columns[r + 2]), p.d3 = b.d, p.mul = a.mul, p.nv = a.nv;
    if (a.mul != b.mul || std::max({p.d1, p.d2, p.d3}) > MAX_DIM)
      throw std::runtime_error("eqtp: not a native channelwise path");
    p.x = a.toffset, p.o = b.toffset, p.y = columns[r + 1], p.w = columns[r + 4], p.wt = -1;
    if (p.w >= 0) {
      if (p.mul % W) v.padded = true;
      p.wt = v.wt, v.wt += a.nv * W;
    }
    first.push_back(at);
    if (at + p.d1 * p.d2 * p.d3 > int64_t(c.size())) throw std::runtime_error("eqtp: too few coefficients");
    p.diagonal = is_diagonal(c.data() + at, p.d1, p.d2, p.d3);
    at += p.d1 * p.d2 * p.d3;
    v.max_matrix = std::max(v.max_matrix, p.d1 * p.d3);
    v.max_row = std::max(v.max_row, p.d1 * a.nv * W);
    o.paths.push_back(p);
  }
  if (!v.padded)  // the caller's rows are used as they are
    for (auto& p : o.paths) p.wt = p.w;
  std::vector<int64_t> ys;
  for (auto& p : o.paths)
    if (std::find(ys.begin(), ys.end(), p.y) == ys.end()) ys.push_back(p.y);
  for (int64_t y : ys) {
    Slice s{y, v.mt, int64_t(o.coefficients.size()), 0, 0};
    for (auto& p : o.paths)
      if (p.y == y) s.d2 = p.d2, p.m = v.mt + s.n, s.n += p.diagonal ? 1 : p.d1 * p.d3;
    s.n = (s.n + W - 1) / W * W;
    o.coefficients.resize(s.c + int64_t(s.d2) * s.n, T(0));
    for (size_t q = 0; q < o.paths.size(); ++q) {
      const Path& p = o.paths[q];
      if (p.y != y) continue;
      const double* C = c.data() + first[q];
      for (int j = 0; j < p.d2; ++j)
        for (int k = 0; k < (p.diagonal ? 1 : p.d3); ++k)
          for (int i = 0; i < (p.diagonal ? 1 : p.d1); ++i)
            o.coefficients[s.c + int64_t(j) * s.n + (p.m - v.mt) + k * p.d1 + i] = T(C[(i * p.d2 + j) * p.d3 + k]);
    }
    v.mt += s.n;
    o.slices.push_back(s);
  }
  for (size_t q = 0; q < o.paths.size(); ++q) {
    Path& p = o.paths[q];
    const double* C = c.data() + first[q];
    p.terms = int64_t(o.term_ptr.size());
    for (int j = 0; j < p.d2; ++j) {
      o.term_ptr.push_back(int64_t(o.term_m.size()));
      for (int k = 0; k < (p.diagonal ? 1 : p.d3); ++k)
        for (int i = 0; i < (p.diagonal ? 1 : p.d1); ++i)
          if (const double x = C[(i * p.d2 + j) * p.d3 + k]; std::abs(x) > 1e-12)
            o.term_m.push_back(k * p.d1 + i), o.term_c.push_back(T(x));
    }
    o.term_ptr.push_back(int64_t(o.term_m.size()));
  }
  v.in1 = o.in1.data(), v.out = o.out.data(), v.paths = o.paths.data(), v.slices = o.slices.data(),
  v.coefficients = o.coefficients.data();
  v.term_ptr = o.term_ptr.data(), v.term_m = o.term_m.data(), v.term_c = o.term_c.data();
  v.n_in1 = int(o.in1.size()), v.n_out = int(o.out.size()), v.n_paths = int(o.paths.size()),
  v.n_slices = int(o.slices.size());
  v.dim1 = dim1, v.dim2 = dim2, v.dim_out = dim_out, v.numel = numel;
}

ChannelwisePlan::ChannelwisePlan(const std::vector<int64_t>& in1, const std::vector<int64_t>& out,
                                 const std::vector<int64_t>& paths, const std::vector<double>& coefficients,
                                 int64_t dim1, int64_t dim2, int64_t dim_out, int64_t numel) {
  build(f32_, in1, out, paths, coefficients, dim1, dim2, dim_out, numel);
  build(f64_, in1, out, paths, coefficients, dim1, dim2, dim_out, numel);
}
template <>
const PlanColumns<float>& ChannelwisePlan::columns<float>() const {
  return f32_.view;
}
template <>
const PlanColumns<double>& ChannelwisePlan::columns<double>() const {
  return f64_.view;
}

}  // namespace eqtp
#endif
