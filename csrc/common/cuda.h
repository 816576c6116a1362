// What the launchers (csrc/*.cu) share: the device of a call, and errors as exceptions that name the op. Nothing here
// runs when the module is loaded.
#pragma once
#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

#include <stdexcept>
#include <string>

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

}  // namespace eqtp::cuda
