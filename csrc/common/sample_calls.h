// How Python calls kernels whose lanes are samples, for bindings (which include pybind11/stl.h).
#pragma once
#include <tuple>
#include <vector>

#include "common/module.h"
#include "common/samples.h"

namespace eqtp {

using Operand = std::tuple<uintptr_t, int64_t, int64_t>;  // address, strides of b and c

template <class T>
static Samples<T> samples(const Operand& tensor, int64_t count_b, int64_t count_c, int64_t n) {
  const auto [address, b, c] = tensor;
  T* const data = reinterpret_cast<T*>(address);
  return {data, b, c, n, data + (count_b - 1) * b + (count_c - 1) * c + n};
}

// Binds run<T>(program, x, y, count_b, count_c, threads), which the file of each Program has. Nothing in it touches
// Python, so other threads may.
template <class Program>
static void define_run(pybind11::module_& m, const char* name) {
  m.def(
      name,
      [](const Program& program, const std::vector<Operand>& x, const std::vector<Operand>& y, int64_t count_b,
         int64_t count_c, bool f64, int threads) {
        with_real(f64, [&](auto real) { run<decltype(real)>(program, x, y, count_b, count_c, threads); });
      },
      pybind11::call_guard<pybind11::gil_scoped_release>());
}

}  // namespace eqtp
