// What the table-driven kernels (table_driven.cuh) read: the columns of a walk over destinations (fwd) or sources (bwd)
// from eqtp/backends/native/channelwise_columns.py, and the operands.
#pragma once
#include "common/device.cuh"

namespace eqtp::table_driven {

constexpr int LANES = 32, MAX_WARPS = 4;
constexpr int TILE = 8;  // components that a lane holds at most; larger blocks are worked on in parts
constexpr int MAX_DIM = 33;  // components of a block (plan.h)

struct ChannelGroup {
  int row, d, mul;  // the block [mul, d] begins at `row` in rows of the output (fwd) or x (bwd)
  int u, k;  // first channel; first component (fwd, d > 7)
  int path, path_end;  // its paths
  int m, count;  // its entries of M
  int y;  // bwd: the first of dim2 + 1 entries of y_ptr
};
struct TablePath {
  int row, d;  // the other block, [mul, d], in rows of x (fwd) or g (bwd)
  int w;  // first weight; -1: none
  // where its part of M begins: [d, K] with K the components of the group, rounded up to 1, 4 or 8; bwd, d > 7: that
  // for every TILE of them
  int m;
};
template <class R>
struct WalkColumns {
  const ChannelGroup* groups;  // [num_groups]
  const TablePath* paths;
  const int* columns;  // [entries, 2] of y
  const R* terms;  // [entries, 2]; M = terms[0] y[columns[0]] + terms[1] y[columns[1]]
  const int *y_ptr, *y_entry;  // gy[j] = sum over the terms t of (group, j): y_term[t] gM[y_entry[t]]
  const R* y_term;
  int num_groups, dim2;
};
// Where the parts of a warp's shared memory begin, in numbers
struct Space { int m, tm, gm, x, tx, g, tg, size; };
// Rows are `*_stride` numbers apart. The walk is over `rows`: with a graph, row n has the edges order[ptr[n] : ptr[n +
// 1]], which lead to other[e].
template <class T>
struct Args {
  Index rows, num_edges;
  const Index *ptr, *order, *other;  // [rows + 1], [e], [e]; null: edge n joins row n to row n
  const T *x, *y, *w, *g, *tx, *ty, *tw;  // [num_src, dim1], [e, dim2], [e, numel], [num_dst, dim3]; the direction
  Index x_stride, y_stride, w_stride, g_stride, tx_stride, ty_stride, tw_stride;
  T *out, *gx, *gw;  // [num_dst, dim3], [num_src, dim1], [e, numel]; null: not wanted
  Real<T>* gy;  // [num_groups, e, dim2]; null: not wanted
  Index dim1, dim3, numel;
};

}  // namespace eqtp::table_driven
