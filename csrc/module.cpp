#include "module.h"

#include "simd.h"

PYBIND11_MODULE(_native, m) {
  m.attr("has_cuda") = false;
  m.def("simd_level", &eqtp::simd_level, "1: plain C++, 3: AVX2 and FMA, 4: AVX-512");
  for (auto* b = eqtp::Binding::first(); b; b = b->next) b->define(m);
}
