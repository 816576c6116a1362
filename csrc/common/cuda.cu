#include "common/cuda.h"

namespace eqtp::cuda {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // or the next check would report it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}
void check_launch(const char* what) { check(cudaGetLastError(), what); }

DeviceGuard::DeviceGuard(int device, const char* what) : before_(device), device_(device) {
  check(cudaGetDevice(&before_), what);
  if (before_ != device_) check(cudaSetDevice(device_), what);
}
DeviceGuard::~DeviceGuard() {
  if (before_ != device_) cudaSetDevice(before_);
}

}  // namespace eqtp::cuda

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include "common/module.h"

namespace eqtp::cuda {

// How many GPUs there are; if none, why
static pybind11::tuple device_count() {
  int count = 0, driver = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count) return pybind11::make_tuple(count, pybind11::none());
  cudaGetLastError();
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) return pybind11::make_tuple(0, "no NVIDIA driver");
  return pybind11::make_tuple(0, error == cudaSuccess ? "no GPU" : cudaGetErrorString(error));
}

EQTP_BINDING(define_cuda) { m.def("cuda_device_count", &device_count, "(number of GPUs, why there is none)"); }

}  // namespace eqtp::cuda
#endif
