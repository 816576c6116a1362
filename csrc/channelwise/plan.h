// The columns of a channelwise (uvu, second multiplicity 1) tensor product plan, as the kernels read them. Nothing here
// computes a coefficient: eqtp/plans/plan.py did, in float64; the constructor only casts, pads and sorts.
//
// Blocked rows. A row [mul, d] per irrep (mul_ir) becomes [nv, d, W] with W the SIMD width and nv = ceil(mul / W): W
// channels u fill a vector, and the d components of these channels follow one another. Padding lanes hold zeros.
//
// Edge matrix. A path's coefficients are contracted with y once per edge, M[k, i] = sum_j C[i, j, k] y[j]; all channels
// share it. Entries of all paths that read the same irrep of y stand side by side, so that M is a few fused
// multiply-adds of whole vectors.
#pragma once
#include <cstdint>
#include <vector>

namespace eqtp {

constexpr int MAX_DIM = 33;  // 2 l + 1 of any irrep of a native path: l <= 16

struct Slot {  // one irrep of a row
  int64_t offset;  // in the mul_ir row
  int64_t toffset;  // in the blocked row
  int mul, d, nv;
};

struct Path {
  int d1, d2, d3, mul, nv;
  bool diagonal;  // C[i, 0, k] = c delta_ik: M is one number
  int64_t x, o;  // offsets in blocked rows of in1 and out
  int64_t y;  // offset in the row of in2
  int64_t w, wt;  // offsets in the row of weights and in its padded copy; w = -1: no weight
  int64_t m;  // offset in M
  int64_t terms;  // first of d2 + 1 entries of term_ptr
};

struct Slice {
  int64_t y, m, c;
  int d2, n;
};  // one irrep of in2: M[m : m + n] = sum_j y[j] coefficients[c + j n :]; n a multiple of W

template <class T>
struct PlanColumns {  // a view; the arrays belong to ChannelwisePlan
  const Slot *in1, *out;
  const Path* paths;
  const Slice* slices;
  const T* coefficients;
  const int64_t* term_ptr;  // gy[j] += sum over terms t of (path, j): term_c[t] gM[term_m[t]]
  const int32_t* term_m;
  const T* term_c;
  int n_in1, n_out, n_paths, n_slices;
  int64_t dim1, dim2, dim_out, numel;  // rows as the caller stores them
  int64_t xt, ot, wt, mt;  // blocked rows, padded weights, M
  int max_matrix, max_row;  // most entries of a path's M; longest [nv, d1, W]
  bool padded;  // some path's weights do not fill whole vectors
};

template <class T>
struct PlanColumnsOwner {
  PlanColumns<T> view;
  std::vector<Slot> in1, out;
  std::vector<Path> paths;
  std::vector<Slice> slices;
  std::vector<T> coefficients, term_c;
  std::vector<int64_t> term_ptr;
  std::vector<int32_t> term_m;
};

class ChannelwisePlan {
 public:
  // slots: (offset, mul, d) per irrep; paths: (i1, y offset, d2, io, w offset or -1) per path; coefficients: [d1, d2,
  // d3] of each path, one after another
  ChannelwisePlan(const std::vector<int64_t>& in1, const std::vector<int64_t>& out, const std::vector<int64_t>& paths,
                  const std::vector<double>& coefficients, int64_t dim1, int64_t dim2, int64_t dim_out, int64_t numel);
  template <class T>
  const PlanColumns<T>& columns() const;

 private:
  PlanColumnsOwner<float> f32_;
  PlanColumnsOwner<double> f64_;
};

}  // namespace eqtp
