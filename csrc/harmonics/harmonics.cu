// Launches the kernels of harmonics.cuh with tables that are arguments: of fixed degrees by value, or in memory.
#include "harmonics/harmonics.cuh"

#include <cstdint>
#include <stdexcept>
#include <string>

#include "common/cuda.h"

namespace eqtp {

constexpr size_t SHARED = 48 * 1024;  // bytes of a block; more must be asked for

// What a launch needs to know of the degrees and the normalisation
struct HarmonicsCuda {
  int lmax, columns;
  // [harmonics_rows(lmax), 4] if the columns are the components of degrees 0 .. lmax, else null
  const double* constants;
};

template <class T, int PASS, class Table>
static void run_table(const Table& table, const HarmonicsCuda& h, HarmonicsArrays<T> a, cudaStream_t stream) {
  constexpr size_t SIZE = sizeof(Real<T>);
  const size_t stride = harmonics_stride(h.columns),
               line = Table::LMAX >= 0 || PASS == VALUES ? 0 : 32 * (h.lmax + 1) * (PASS == SECOND ? 2 : 1);
  const auto room = [&](size_t points) { return (points * stride + 3) / 4 * 4 + line; };
  size_t points = 32;
  while (points && room(points) * SIZE > SHARED) points /= 2;
  if (!points)
    throw std::invalid_argument("spherical_harmonics: " + std::to_string(h.columns) +
                                " columns do not fit the shared memory of a GPU");
  const size_t most = SHARED / (room(points) * SIZE),
               warps = most < HARMONICS_THREADS / 32 ? most : HARMONICS_THREADS / 32;
  a.tile = int(points), a.room = int(room(points));
  launch(harmonics_kernel<T, PASS, Table>, dim3(cuda::grid_of((a.points + points * warps - 1) / (points * warps))),
         dim3(unsigned(32 * warps)), warps * room(points) * SIZE, stream, table, a);
}
template <class T, int PASS, int L>
static void run_fixed(const HarmonicsCuda& h, const HarmonicsArrays<T>& a, cudaStream_t stream) {
  FixedTable<Real<T>, L> table;
  for (int n = 0; n < harmonics_rows(L); ++n)
    for (int i = 0; i < 4; ++i) table.constants[n][i] = Real<T>(h.constants[4 * n + i]);
  run_table<T, PASS>(table, h, a, stream);
}
// Degrees 0 .. 1, 2 and 3 in order have kernels of their own in float32; more would be slow to compile, and the
// specialised kernels know all
template <class T, int PASS>
static void run_pass(const HarmonicsCuda& h, const GivenTable<Real<T>>& given, const HarmonicsArrays<T>& a,
                     cudaStream_t stream) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (h.constants && h.lmax == 1) return run_fixed<T, PASS, 1>(h, a, stream);
    if (h.constants && h.lmax == 2) return run_fixed<T, PASS, 2>(h, a, stream);
    if (h.constants && h.lmax == 3) return run_fixed<T, PASS, 3>(h, a, stream);
  }
  run_table<T, PASS>(given, h, a, stream);
}

using cuda::Address;
using cuda::pointer;

// Operands by address, as HarmonicsArrays has them. constants [harmonics_rows(lmax), 4] of Real<T>, start and column of
// int: GivenTable, on the device
struct HarmonicsCall {
  HarmonicsCuda shape;
  Address constants, start, column;
  bool normalize;
  Index points;
  Address xyz;
  Index xyz_row, xyz_col;
  Address g;
  Index g_row;
  Address c;
  Index c_row, c_col;
  Address out, gxyz;
  int dtype, device;
  Address stream;
};

template <class T>
static HarmonicsArrays<T> arrays(const HarmonicsCall& call) {
  return {.normalize = call.normalize,
          .points = call.points,
          .xyz = pointer<const T>(call.xyz),
          .g = pointer<const T>(call.g),
          .c = pointer<const T>(call.c),
          .xyz_row = call.xyz_row,
          .xyz_col = call.xyz_col,
          .g_row = call.g_row,
          .c_row = call.c_row,
          .c_col = call.c_col,
          .out = pointer<T>(call.out),
          .gxyz = pointer<T>(call.gxyz)};
}

static void spherical_harmonics(const HarmonicsCall& call) {
  if (!call.points || (!call.out && !call.gxyz)) return;
  const cuda::DeviceGuard guard(call.device, "spherical_harmonics");
  cuda::with_dtype(call.dtype, "spherical_harmonics", [&](auto type) {
    using T = typename decltype(type)::type;
    const GivenTable<Real<T>> given{.constants = pointer<const Real<T>>(call.constants),
                                    .start = pointer<const int>(call.start),
                                    .column = pointer<const int>(call.column),
                                    .degree = call.shape.lmax,
                                    .width = call.shape.columns};
    const auto stream = cudaStream_t(call.stream);
    if (call.c) run_pass<T, SECOND>(call.shape, given, arrays<T>(call), stream);
    else if (call.gxyz) run_pass<T, GRADIENT>(call.shape, given, arrays<T>(call), stream);
    else run_pass<T, VALUES>(call.shape, given, arrays<T>(call), stream);
  });
  cuda::check_launch("spherical_harmonics");
}

// fixed: address of HarmonicsCuda::constants, on the host
void spherical_harmonics_cuda(int lmax, int columns, Address fixed, Address constants, Address start, Address column,
                              bool normalize, Index points, Address xyz, Index xyz_row, Index xyz_col, Address g,
                              Index g_row, Address c, Index c_row, Index c_col, Address out, Address gxyz, int dtype,
                              int device, Address stream) {
  spherical_harmonics({.shape = {.lmax = lmax, .columns = columns, .constants = pointer<const double>(fixed)},
                       .constants = constants,
                       .start = start,
                       .column = column,
                       .normalize = normalize,
                       .points = points,
                       .xyz = xyz,
                       .xyz_row = xyz_row,
                       .xyz_col = xyz_col,
                       .g = g,
                       .g_row = g_row,
                       .c = c,
                       .c_row = c_row,
                       .c_col = c_col,
                       .out = out,
                       .gxyz = gxyz,
                       .dtype = dtype,
                       .device = device,
                       .stream = stream});
}

}  // namespace eqtp

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include "common/module.h"

namespace eqtp {
EQTP_BINDING(define_spherical_harmonics_cuda) {
  m.def("spherical_harmonics_cuda", &spherical_harmonics_cuda, pybind11::call_guard<pybind11::gil_scoped_release>());
}
}  // namespace eqtp
#endif
