#include "common/cuda.h"
#include "harmonics/harmonics.cuh"

#ifndef __CUDA_ARCH__  // a binding is for the host, and slow to read
#include "common/module.h"
#endif

namespace eqtp {

constexpr size_t SHARED = 48 * 1024;  // bytes of a block; more must be asked for

// What a launch needs to know of the degrees and the normalisation
struct HarmonicsCuda {
  int lmax, columns;
  const double*
      constants;  // [harmonics_rows(lmax), 4] if the columns are the components of degrees 0 .. lmax, else null
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
  const Index blocks = (a.points + points * warps - 1) / (points * warps), limit = 0x7fffffff;
  a.tile = int(points), a.room = int(room(points));
  launch(harmonics_kernel<T, PASS, Table>, dim3(unsigned(blocks < limit ? blocks : limit)), dim3(unsigned(32 * warps)),
         warps * room(points) * SIZE, stream, table, a);
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

using P = uintptr_t;  // address of a tensor's first element; 0: absent

template <class T>
static void run_type(const HarmonicsCuda& h, P constants, P start, P column, bool normalize, Index points, P xyz,
                     Index xyz_row, Index xyz_col, P g, Index g_row, P c, Index c_row, Index c_col, P out, P gxyz,
                     cudaStream_t stream) {
  const auto data = [](P p) { return reinterpret_cast<T*>(p); };
  const auto integers = [](P p) { return reinterpret_cast<const int*>(p); };
  const GivenTable<Real<T>> given{reinterpret_cast<const Real<T>*>(constants), integers(start), integers(column),
                                  h.lmax, h.columns};
  const HarmonicsArrays<T> a{normalize, points, data(xyz), data(g),   data(c),    xyz_row, xyz_col,
                             g_row,     c_row,  c_col,     data(out), data(gxyz), 0,       0};
  if (c) run_pass<T, SECOND>(h, given, a, stream);
  else if (gxyz) run_pass<T, GRADIENT>(h, given, a, stream);
  else run_pass<T, VALUES>(h, given, a, stream);
}

// dtype: 0 float, 1 double, 2 f16, 3 bf16. fixed: address of HarmonicsCuda::constants on the host. constants
// [harmonics_rows(lmax), 4] of Real<T>, start and column of int (GivenTable): on the device.
void spherical_harmonics_cuda(int lmax, int columns, P fixed, P constants, P start, P column, bool normalize,
                              Index points, P xyz, Index xyz_row, Index xyz_col, P g, Index g_row, P c, Index c_row,
                              Index c_col, P out, P gxyz, int dtype, int device, P stream) {
  if (!points || (!out && !gxyz)) return;
  cuda::DeviceGuard guard(device, "spherical_harmonics");
  const auto run = dtype == 0   ? run_type<float>
                   : dtype == 1 ? run_type<double>
                   : dtype == 2 ? run_type<f16>
                                : run_type<bf16>;
  run({lmax, columns, reinterpret_cast<const double*>(fixed)}, constants, start, column, normalize, points, xyz,
      xyz_row, xyz_col, g, g_row, c, c_row, c_col, out, gxyz, reinterpret_cast<cudaStream_t>(stream));
  cuda::check_launch("spherical_harmonics");
}

#ifndef __CUDA_ARCH__
EQTP_BINDING(define_spherical_harmonics_cuda) {
  m.def("spherical_harmonics_cuda", &spherical_harmonics_cuda, pybind11::call_guard<pybind11::gil_scoped_release>());
}
#endif

}  // namespace eqtp
