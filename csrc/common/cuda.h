// What the launchers (csrc/*/*.cu) share: the device and dtype of a call, and errors as exceptions that name the op.
// Nothing here runs when the module is loaded.
#pragma once
#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/device.cuh"

namespace eqtp::cuda {

// Throws std::runtime_error "what: reason" unless the call succeeded
void check(cudaError_t error, const char* what);
// The same for the launches before it; does not wait for the kernels
void check_launch(const char* what);

// Makes a device the current one; the one before comes back at the end of the scope
class DeviceGuard {
 public:
  DeviceGuard(int device, const char* what);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_, device_;
};

using Address = uintptr_t;  // of a tensor's first element; 0: absent
template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

template <class T>
struct Type {
  using type = T;
};
// f(Type<T>()) with the T of a dtype, the position in CUDA_DTYPES of eqtp/backends/native
template <class F>
void with_dtype(int dtype, const char* what, F&& f) {
  switch (dtype) {
    case 0: return f(Type<float>());
    case 1: return f(Type<double>());
    case 2: return f(Type<f16>());
    case 3: return f(Type<bf16>());
    default: throw std::invalid_argument(std::string(what) + ": dtype must be 0 to 3, got " + std::to_string(dtype));
  }
}

// Blocks of a grid that go round until `wanted` blocks of work are done
inline unsigned grid_of(Index wanted) { return unsigned(wanted < 0x7fffffff ? wanted : 0x7fffffff); }

}  // namespace eqtp::cuda
