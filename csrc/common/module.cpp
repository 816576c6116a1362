#include "common/module.h"

#include "common/simd.h"

PYBIND11_MODULE(_native, m) {
#ifdef EQTP_CUDA_ARCHITECTURES
  m.attr("has_cuda") = true;
  m.attr("cuda_architectures") = EQTP_CUDA_ARCHITECTURES;
#else
  m.attr("has_cuda") = false;
  m.attr("cuda_architectures") = "";
  m.def("cuda_device_count", [] { return pybind11::make_tuple(0, "built without CUDA"); });
#endif
  m.def("simd_level", &eqtp::simd_level, "1: plain C++, 3: AVX2 and FMA, 4: AVX-512");
  for (auto* b = eqtp::Binding::first(); b; b = b->next) b->define(m);
}
