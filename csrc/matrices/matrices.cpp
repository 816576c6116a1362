// Lanes are samples. For a tile of W samples: components of every input to a matrix, products of matrices by blocks of
// sums in registers, and components of what they add up to.
//
// Floor: the bytes of the operands at low degrees; then the multiply-adds, (2 s + 1)^3 for each product of two matrices
// and those of the conversions.
#include "matrices/matrices.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

constexpr int BLOCK = EQTP_SIMD_BYTES == 64 ? 4 : 3;  // rows and columns of the sums in registers

// out[i] = sum of c in[at] over the entries of i < n
template <class T>
EQTP_INLINE void gather(int n, const int32_t* ptr, const int32_t* at, const T* c, const Vec<T>* in, Vec<T>* out) {
  for (int i = 0; i < n; ++i) {
    Vec<T> a{}, b{};  // two sums: the processor waits less for one
    int e = ptr[i];
    for (; e + 2 <= ptr[i + 1]; e += 2) a += c[e] * in[at[e]], b += c[e + 1] * in[at[e + 1]];
    if (e < ptr[i + 1]) a += c[e] * in[at[e]];
    out[i] = a + b;
  }
}

template <class V>
EQTP_INLINE void butterfly(V& u, V& v) {
  const V sum = u + v;
  v = u - v, u = sum;
}
// Symmetric and antisymmetric part <-> matrix, in place
template <class T>
EQTP_INLINE void butterflies(int size, Vec<T>* m) {
  for (int a = 0; a < size; ++a)
    for (int b = a + 1; b < size; ++b) butterfly(m[a * size + b], m[b * size + a]);
}
template <class T>
EQTP_INLINE void halves(int n, Vec<T>* u, Vec<T>* v) {
  for (int i = 0; i < n; ++i) u[i] *= T(0.5), v[i] *= T(0.5), butterfly(u[i], v[i]);
}

// A tile, and where it keeps what it needs
template <class T>
struct MatricesTile {
  const MatricesArgs<T>& a;
  Vec<T>* components[2];
  Vec<T>* in;  // [inputs, size, size]
  Vec<T>* out;  // [size, size]
};

// Rows i .. i + R and columns j .. j + S of the sum of the products of terms `first` to `last`
template <int R, int S, int SIZE, class T>
EQTP_INLINE void block(const MatricesTile<T>& t, int first, int last, int i, int j) {
  const int size = SIZE ? SIZE : t.a.size;
  Vec<T> sum[R][S];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) sum[r][s] = Vec<T>{};
  for (int n = first; n < last; ++n) {
    const int32_t* const term = t.a.term + 4 * n;
    const int row = term[1] ? 1 : size, left_step = term[1] ? size : 1, column = term[3] ? size : 1,
              right_step = term[3] ? 1 : size;
    const Vec<T>* left = t.in + term[0] * size * size + i * row;
    const Vec<T>* right = t.in + term[2] * size * size + j * column;
    for (int k = 0; k < size; ++k, left += left_step, right += right_step) {
      Vec<T> b[S];
#pragma GCC unroll 4
      for (int s = 0; s < S; ++s) b[s] = right[s * column];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const Vec<T> a = left[r * row];
#pragma GCC unroll 4
        for (int s = 0; s < S; ++s) sum[r][s] += a * b[s];
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < S; ++s) t.out[(i + r) * size + j + s] = sum[r][s];
}
template <int R, int SIZE, class T>
EQTP_INLINE void blocks_of_rows(const MatricesTile<T>& t, int first, int last, int i) {
  const int size = SIZE ? SIZE : t.a.size, count = (size + BLOCK - 1) / BLOCK;
  for (int n = 0; n < count; ++n) {
    const int j = size * n / count;
    switch (size * (n + 1) / count - j) {
      case 1: block<R, 1, SIZE>(t, first, last, i, j); break;
      case 2: block<R, 2, SIZE>(t, first, last, i, j); break;
      case 3: block<R, 3, SIZE>(t, first, last, i, j); break;
      case 4: block<R, BLOCK, SIZE>(t, first, last, i, j); break;
    }
  }
}
template <int SIZE, class T>
EQTP_INLINE void multiply(const MatricesTile<T>& t, int first, int last) {
  const int size = SIZE ? SIZE : t.a.size, count = (size + BLOCK - 1) / BLOCK;
  for (int n = 0; n < count; ++n) {
    const int i = size * n / count;
    switch (size * (n + 1) / count - i) {
      case 1: blocks_of_rows<1, SIZE>(t, first, last, i); break;
      case 2: blocks_of_rows<2, SIZE>(t, first, last, i); break;
      case 3: blocks_of_rows<3, SIZE>(t, first, last, i); break;
      case 4: blocks_of_rows<BLOCK, SIZE>(t, first, last, i); break;
    }
  }
}

template <int SIZE, class T>
static void run_tile(const MatricesTile<T>& t, int64_t z, int count) {
  const MatricesArgs<T>& a = t.a;
  const int size = SIZE ? SIZE : a.size;
  for (int i = 0; i < a.inputs; ++i) {
    if (!a.used[i]) continue;
    const int both = i == a.pair_in ? 2 : 1;
    for (int p = 0; p < both; ++p) read_samples(a.x[i + p], a.count_c, z, count, a.place, t.components[p]);
    if (both == 2) halves<T>(a.in[i].components, t.components[0], t.components[1]);
    for (int p = 0; p < both; ++p) {
      Vec<T>* const m = t.in + (i + p) * size * size;
      const Conversion<T>& c = a.in[i + p];
      gather(size * size, c.to_ptr, c.to_at, c.to, t.components[p], m);
      butterflies<T>(size, m);
    }
    i += both - 1;
  }
  for (int o = 0; o < a.outputs; ++o) {
    const Conversion<T>& c = a.out[o];
    const bool second = a.pair_out >= 0 && o == a.pair_out + 1;
    multiply<SIZE>(t, a.term_ptr[o], a.term_ptr[o + 1]);
    butterflies<T>(size, t.out);
    gather(c.components, c.back_ptr, c.back_at, c.back, t.out, t.components[second]);
    if (o == a.pair_out) continue;
    if (second) {
      halves<T>(c.components, t.components[0], t.components[1]);
      write_samples(a.y[o - 1], a.count_c, z, count, a.place, t.components[0]);
    }
    write_samples(a.y[o], a.count_c, z, count, a.place, t.components[second]);
  }
}

template <class T>
void matrices(const MatricesArgs<T>& a) {
  const int64_t square = int64_t(a.size) * a.size;
  int64_t most = 0;
  for (int i = 0; i < a.inputs; ++i) most = a.x[i].n > most ? a.x[i].n : most;
  for (int o = 0; o < a.outputs; ++o) most = a.y[o].n > most ? a.y[o].n : most;
  const auto make = [&](Vec<T>* work) {
    return MatricesTile<T>{
        .a = a, .components = {work, work + most}, .in = work + 2 * most, .out = work + 2 * most + a.inputs * square};
  };
  const auto run = [&](const MatricesTile<T>& tile, int64_t z, int count) {
    switch (a.size) {  // the usual sizes have code of their own
      case 3: return run_tile<3>(tile, z, count);
      case 5: return run_tile<5>(tile, z, count);
      case 7: return run_tile<7>(tile, z, count);
      case 9: return run_tile<9>(tile, z, count);
      default: return run_tile<0>(tile, z, count);
    }
  };
  each_sample_tile(a.count_b * a.count_c, a.threads, 2 * most + (a.inputs + 1) * square, a.y, a.outputs, make, run);
}
EQTP_INSTANTIATE_KERNEL(matrices, MatricesArgs);

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include <pybind11/stl.h>

#include <memory>
#include <numeric>
#include <vector>

#include "common/module.h"
#include "common/precisions.h"
#include "common/sample_calls.h"

namespace py = pybind11;
namespace eqtp {

using Ints = std::vector<int32_t>;
using Doubles = std::vector<double>;

// As eqtp/backends/native/matrices.py hands it over
struct MatrixConversion {
  template <class T>
  Conversion<T> conversion() const {
    return {.components = int(back_ptr.size()) - 1,
            .to_ptr = to_ptr.data(),
            .to_at = to_at.data(),
            .to = to.data<T>(),
            .back_ptr = back_ptr.data(),
            .back_at = back_at.data(),
            .back = back.data<T>()};
  }
  Ints to_ptr, to_at, back_ptr, back_at;
  BothPrecisions to, back;
};
using Conversions = std::vector<std::shared_ptr<MatrixConversion>>;

struct MatrixProgram {
  int size;
  Conversions in, out;
  int pair_in, pair_out;
  Ints term_ptr, term, used, place;
};

template <class T>
static void run(const MatrixProgram& p, const std::vector<Operand>& x, const std::vector<Operand>& y, int64_t count_b,
                int64_t count_c, int threads) {
  std::vector<Conversion<T>> in, out;
  std::vector<Samples<T>> inputs, outputs;
  const auto fill = [&](const Conversions& of, const std::vector<Operand>& tensors,
                        std::vector<Conversion<T>>& conversions, std::vector<Samples<T>>& all) {
    for (size_t i = 0; i < of.size(); ++i) {
      conversions.push_back(of[i]->template conversion<T>());
      all.push_back(samples<T>(tensors[i], count_b, count_c, conversions[i].components));
    }
  };
  fill(p.in, x, in, inputs), fill(p.out, y, out, outputs);
  const MatricesArgs<T> a{.size = p.size,
                          .inputs = int(in.size()),
                          .outputs = int(out.size()),
                          .in = in.data(),
                          .out = out.data(),
                          .pair_in = p.pair_in,
                          .pair_out = p.pair_out,
                          .term_ptr = p.term_ptr.data(),
                          .term = p.term.data(),
                          .used = p.used.data(),
                          .place = p.place.data(),
                          .x = inputs.data(),
                          .y = outputs.data(),
                          .count_b = count_b,
                          .count_c = count_c,
                          .threads = threads};
  EQTP_RUN(matrices, a);
}

EQTP_BINDING(define_matrix_tensor_product) {
  py::class_<MatrixConversion, std::shared_ptr<MatrixConversion>>(m, "MatrixConversion")
      .def(py::init([](Ints to_ptr, Ints to_at, Ints back_ptr, Ints back_at, const Doubles& to, const Doubles& back) {
        return MatrixConversion{.to_ptr = to_ptr,
                                .to_at = to_at,
                                .back_ptr = back_ptr,
                                .back_at = back_at,
                                .to = BothPrecisions(to),
                                .back = BothPrecisions(back)};
      }));
  py::class_<MatrixProgram>(m, "MatrixProgram")
      .def(py::init([](int size, Conversions in, Conversions out, int pair_in, int pair_out, Ints term_ptr, Ints term) {
        Ints used(in.size()), place(size_t(size) * size_t(size));  // no more components than entries of a matrix
        for (size_t n = 0; n < term.size(); n += 2) used[size_t(term[n])] = 1;
        std::iota(place.begin(), place.end(), 0);
        return MatrixProgram{.size = size,
                             .in = in,
                             .out = out,
                             .pair_in = pair_in,
                             .pair_out = pair_out,
                             .term_ptr = term_ptr,
                             .term = term,
                             .used = used,
                             .place = place};
      }));
  define_run<MatrixProgram>(m, "matrices");
}

}  // namespace eqtp
#endif
