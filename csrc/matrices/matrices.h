// Sums of products of matrices that stand for functions on the sphere: runs a program of eqtp/plans/matrices.py, whose
// docstrings have the mathematics.
#pragma once
#include "common/samples.h"

namespace eqtp {

// Between components and matrices of `size` rows: the entries of a place of the matrix, and those of a component
template <class T>
struct Conversion {
  int components;  // (lmax + 1)^2
  const int32_t* to_ptr;  // [size size + 1] into to_at, to
  const int32_t* to_at;  // [entries] components
  const T* to;  // [entries]
  const int32_t* back_ptr;  // [components + 1] into back_at, back
  const int32_t* back_at;  // [entries] places
  const T* back;  // [entries]
};

template <class T>
struct MatricesArgs {
  int size;
  int inputs, outputs;
  const Conversion<T>* in;  // [inputs]
  const Conversion<T>* out;  // [outputs]
  int pair_in, pair_out;  // first of two signals of which half the sum and half the difference are taken; -1: none
  const int32_t* term_ptr;  // [outputs + 1] into term
  const int32_t* term;  // [terms, 4] left, whether it is transposed, right, whether it is transposed
  const int32_t* used;  // [inputs] whether a term has it
  const int32_t* place;  // 0, 1, 2, .. up to the largest number of components
  const Samples<T>* x;  // [inputs]
  const Samples<T>* y;  // [outputs]
  int64_t count_b, count_c;  // samples
  int threads;
};
EQTP_DECLARE_KERNEL(matrices, MatricesArgs);

}  // namespace eqtp
