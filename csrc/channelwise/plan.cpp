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
    s.push_back({.offset = columns[i], .toffset = row, .mul = mul, .d = d, .nv = nv});
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

// What the caller gives for every path, and where each path's [d1, d2, d3] begins in the coefficients
struct PathTable {
  const std::vector<int64_t>& columns;  // [paths, 5]
  const std::vector<double>& coefficients;
  std::vector<int64_t> first;  // [paths]

  const double* of(size_t path) const { return coefficients.data() + first[path]; }
};

// The paths with their rows and weights; what M they have comes after
template <class T>
static void read_paths(PlanColumnsOwner<T>& o, PathTable& table, int W) {
  PlanColumns<T>& v = o.view;
  int64_t at = 0;
  for (size_t r = 0; r < table.columns.size(); r += 5) {
    const int64_t* const column = table.columns.data() + r;
    const Slot &a = o.in1.at(column[0]), &b = o.out.at(column[3]);
    Path p{};
    p.d1 = a.d, p.d2 = int(column[2]), p.d3 = b.d, p.mul = a.mul, p.nv = a.nv;
    if (a.mul != b.mul || std::max({p.d1, p.d2, p.d3}) > MAX_DIM)
      throw std::runtime_error("eqtp: not a native channelwise path");
    p.x = a.toffset, p.o = b.toffset, p.y = column[1], p.w = column[4], p.wt = -1;
    if (p.w >= 0) {
      if (p.mul % W) v.padded = true;
      p.wt = v.wt, v.wt += a.nv * W;
    }
    table.first.push_back(at);
    if (at + p.d1 * p.d2 * p.d3 > int64_t(table.coefficients.size()))
      throw std::runtime_error("eqtp: too few coefficients");
    p.diagonal = is_diagonal(table.coefficients.data() + at, p.d1, p.d2, p.d3);
    at += p.d1 * p.d2 * p.d3;
    v.max_matrix = std::max(v.max_matrix, p.d1 * p.d3);
    v.max_row = std::max(v.max_row, p.d1 * a.nv * W);
    o.paths.push_back(p);
  }
  if (!v.padded)  // the caller's rows are used as they are
    for (auto& p : o.paths) p.wt = p.w;
}

// M by irreps of in2: places of the paths' parts, and the coefficients of each
template <class T>
static void build_slices(PlanColumnsOwner<T>& o, const PathTable& table, int W) {
  PlanColumns<T>& v = o.view;
  std::vector<int64_t> ys;
  for (auto& p : o.paths)
    if (std::find(ys.begin(), ys.end(), p.y) == ys.end()) ys.push_back(p.y);
  for (int64_t y : ys) {
    Slice s{.y = y, .m = v.mt, .c = int64_t(o.coefficients.size()), .d2 = 0, .n = 0};
    for (auto& p : o.paths)
      if (p.y == y) s.d2 = p.d2, p.m = v.mt + s.n, s.n += p.diagonal ? 1 : p.d1 * p.d3;
    s.n = (s.n + W - 1) / W * W;
    o.coefficients.resize(s.c + int64_t(s.d2) * s.n, T(0));
    for (size_t q = 0; q < o.paths.size(); ++q) {
      const Path& p = o.paths[q];
      if (p.y != y) continue;
      const double* C = table.of(q);
      for (int j = 0; j < p.d2; ++j)
        for (int k = 0; k < (p.diagonal ? 1 : p.d3); ++k)
          for (int i = 0; i < (p.diagonal ? 1 : p.d1); ++i)
            o.coefficients[s.c + int64_t(j) * s.n + (p.m - v.mt) + k * p.d1 + i] = T(C[(i * p.d2 + j) * p.d3 + k]);
    }
    v.mt += s.n;
    o.slices.push_back(s);
  }
}

// The terms of the gradient of y
template <class T>
static void build_terms(PlanColumnsOwner<T>& o, const PathTable& table) {
  for (size_t q = 0; q < o.paths.size(); ++q) {
    Path& p = o.paths[q];
    const double* C = table.of(q);
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
}

// dims: of a row of in1, in2, out and of weights
template <class T>
static void build(PlanColumnsOwner<T>& o, const std::vector<int64_t>& in1, const std::vector<int64_t>& out,
                  PathTable table, const int64_t (&dims)[4]) {
  const int W = simd_bytes() / int(sizeof(T));
  PlanColumns<T>& v = o.view;
  v = PlanColumns<T>{};
  o.in1 = slots(in1, W, v.xt);
  o.out = slots(out, W, v.ot);
  read_paths(o, table, W);
  build_slices(o, table, W);
  build_terms(o, table);
  v.in1 = o.in1.data(), v.out = o.out.data(), v.paths = o.paths.data(), v.slices = o.slices.data(),
  v.coefficients = o.coefficients.data();
  v.term_ptr = o.term_ptr.data(), v.term_m = o.term_m.data(), v.term_c = o.term_c.data();
  v.n_in1 = int(o.in1.size()), v.n_out = int(o.out.size()), v.n_paths = int(o.paths.size()),
  v.n_slices = int(o.slices.size());
  v.dim1 = dims[0], v.dim2 = dims[1], v.dim_out = dims[2], v.numel = dims[3];
}

ChannelwisePlan::ChannelwisePlan(const std::vector<int64_t>& in1, const std::vector<int64_t>& out,
                                 const std::vector<int64_t>& paths, const std::vector<double>& coefficients,
                                 int64_t dim1, int64_t dim2, int64_t dim_out, int64_t numel) {
  const PathTable table{.columns = paths, .coefficients = coefficients, .first = {}};
  const int64_t dims[] = {dim1, dim2, dim_out, numel};
  build(f32_, in1, out, table, dims);
  build(f64_, in1, out, table, dims);
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
