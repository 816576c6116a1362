// Lanes are samples: the inputs of a tile of W samples are read as vectors, and the table is walked once for all of
// them.
#include "couplings/couplings.h"

#ifdef EQTP_SIMD
namespace eqtp::EQTP_SIMD {

template <class T>
static void couple_tile(const CouplingArgs<T>& a, Vec<T>* in, Vec<T>* out, int64_t z, int count) {
  Vec<T>* to = in;
  for (int i = 0; i < a.inputs; to += a.x[i++].n) read_samples(a.x[i], a.count_c, z, count, a.place, to);
  int64_t k = 0;  // component of all outputs
  for (int o = 0; o < a.outputs; ++o) {
    for (int64_t i = 0; i < a.y[o].n; ++i, ++k) {
      Vec<T> sum{};
      for (int g = a.out_ptr[k]; g < a.out_ptr[k + 1]; ++g) {
        Vec<T> s[4]{};  // four sums: the processor does not wait for one
        int e = a.group_ptr[g];
        const int end = a.group_ptr[g + 1];
        for (; e + 4 <= end; e += 4)
#pragma GCC unroll 4
          for (int n = 0; n < 4; ++n) s[n] += a.c[e + n] * in[a.a[e + n]] * in[a.b[e + n]];
        for (; e < end; ++e) s[0] += a.c[e] * in[a.a[e]] * in[a.b[e]];
        const Vec<T> all = (s[0] + s[1]) + (s[2] + s[3]);
        sum += a.scale[g] < 0 ? all : in[a.scale[g]] * all;
      }
      out[i] = sum;
    }
    write_samples(a.y[o], a.count_c, z, count, a.place, out);
  }
}

template <class T>
void couple(const CouplingArgs<T>& a) {
  int64_t inputs = 0, most = 0;
  for (int i = 0; i < a.inputs; ++i) inputs += a.x[i].n;
  for (int o = 0; o < a.outputs; ++o) most = a.y[o].n > most ? a.y[o].n : most;
  each_sample_tile(
      a.count_b * a.count_c, a.threads, inputs + most, a.y, a.outputs, [](Vec<T>* work) { return work; },
      [&](Vec<T>* work, int64_t z, int count) { couple_tile(a, work, work + inputs, z, count); });
}
EQTP_INSTANTIATE_KERNEL(couple, CouplingArgs);

}  // namespace eqtp::EQTP_SIMD

#else  // ---- binding
#include <pybind11/stl.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "common/module.h"
#include "common/precisions.h"
#include "common/sample_calls.h"

namespace py = pybind11;
namespace eqtp {

using Ints = std::vector<int32_t>;

struct CouplingTable {
  CouplingTable(Ints inputs, Ints outputs, Ints out_ptr, Ints group_ptr, Ints scale, Ints a, Ints b,
                const std::vector<double>& c)
      : inputs(inputs), outputs(outputs), out_ptr(out_ptr), group_ptr(group_ptr), scale(scale), a(a), b(b), c(c) {
    int most = 0;
    for (const Ints* sizes : {&inputs, &outputs})
      for (int n : *sizes) most = std::max(most, n);
    place.resize(size_t(most));
    std::iota(place.begin(), place.end(), 0);
  }
  Ints inputs, outputs, out_ptr, group_ptr, scale, a, b, place;
  BothPrecisions c;
};

template <class T>
static void run(const CouplingTable& t, const std::vector<Operand>& x, const std::vector<Operand>& y, int64_t b,
                int64_t c, int threads) {
  std::vector<Samples<T>> inputs, outputs;
  for (size_t i = 0; i < x.size(); ++i) inputs.push_back(samples<T>(x[i], b, c, t.inputs[i]));
  for (size_t o = 0; o < y.size(); ++o) outputs.push_back(samples<T>(y[o], b, c, t.outputs[o]));
  const CouplingArgs<T> a{.inputs = int(inputs.size()),
                          .outputs = int(outputs.size()),
                          .out_ptr = t.out_ptr.data(),
                          .group_ptr = t.group_ptr.data(),
                          .scale = t.scale.data(),
                          .a = t.a.data(),
                          .b = t.b.data(),
                          .c = t.c.data<T>(),
                          .place = t.place.data(),
                          .x = inputs.data(),
                          .y = outputs.data(),
                          .count_b = b,
                          .count_c = c,
                          .threads = threads};
  EQTP_RUN(couple, a);
}

EQTP_BINDING(define_coupling) {
  py::class_<CouplingTable>(m, "CouplingTable")
      .def(py::init<Ints, Ints, Ints, Ints, Ints, Ints, Ints, std::vector<double>>());
  define_run<CouplingTable>(m, "couple");
}

}  // namespace eqtp
#endif
