// Spherical harmonics as ops of torch: eqtp/ops/spherical_harmonics.py.
#include "common/precisions.h"
#include "common/record.h"
#include "common/stable.h"
#include "harmonics/harmonics.h"

namespace eqtp {

// What a kernel needs to know of the degrees and the normalisation: eqtp/math/harmonics.py, `record`
struct HarmonicsTable {
  explicit HarmonicsTable(const Record& r)
      : lmax(int(r.integers(0).at(0))), columns(r.integers(0).at(1)), constants(r.numbers(2)) {
    for (const int64_t n : r.integers(1)) column.push_back(int32_t(n));
  }
  int lmax;
  int64_t columns;
  std::vector<int32_t> column;  // empty: all in order
  BothPrecisions constants;
};

// xyz [n, 3], g [n, columns], c [n, 3] -> out [n, columns], gxyz [n, 3]; none: absent, not wanted
static void run(const HarmonicsTable& table, bool normalize, const Tensor& xyz, const Tensor& g, const Tensor& c,
                const Tensor& out, const Tensor& gxyz) {
  if (xyz.dim() != 2 || xyz.size(1) != 3) fail("spherical_harmonics", "xyz must be [n, 3]");
  with_real(xyz.is_float64(), [&](auto real) {
    using T = decltype(real);
    const auto data = [](const Tensor& t) { return t ? t.data<T>() : nullptr; };
    const auto result = [](const Tensor& t) { return t ? t.mutable_data<T>() : nullptr; };
    const auto stride = [](const Tensor& t, int d) { return t ? t.stride(d) : 0; };
    const HarmonicsArgs<T> args{.lmax = table.lmax,
                                .constants = reinterpret_cast<const HarmonicsConstants<T>*>(table.constants.data<T>()),
                                .columns = table.columns,
                                .column = table.column.empty() ? nullptr : table.column.data(),
                                .normalize = normalize,
                                .points = xyz.size(0),
                                .xyz = xyz.data<T>(),
                                .g = data(g),
                                .c = data(c),
                                .xyz_row = xyz.stride(0),
                                .xyz_col = xyz.stride(1),
                                .g_row = stride(g, 0),
                                .c_row = stride(c, 0),
                                .c_col = stride(c, 1),
                                .out = result(out),
                                .gxyz = result(gxyz),
                                .threads = num_threads()};
    EQTP_RUN(harmonics, args);
  });
}

#define CONSTANTS "int[] degrees, bool normalize, str table, str family)"

static void fwd(Arguments& in, Results& out) {
  const HarmonicsTable& table = kept<HarmonicsTable>(in.text());
  const Tensor xyz = in.tensor();
  out.push_back(Tensor::empty({xyz.size(0), table.columns}, xyz.dtype()));
  run(table, in.flag(), xyz, {}, {}, out[0], {});
}
static constexpr Op fwd_op{.name = "spherical_harmonics", .schema = "(Tensor xyz, " CONSTANTS " -> Tensor", .run = fwd};
static const Registered<fwd_op> register_fwd;

static void bwd(Arguments& in, Results& out) {
  const HarmonicsTable& table = kept<HarmonicsTable>(in.text());
  const Tensor g = in.tensor().contiguous_rows(), xyz = in.tensor();
  out.push_back(xyz.empty_like());
  run(table, in.flag(), xyz, g, {}, {}, out[0]);
}
static constexpr Op bwd_op{
    .name = "spherical_harmonics_bwd", .schema = "(Tensor g, Tensor xyz, " CONSTANTS " -> Tensor", .run = bwd};
static const Registered<bwd_op> register_bwd;

static void bwdbwd(Arguments& in, Results& out) {
  const HarmonicsTable& table = kept<HarmonicsTable>(in.text());
  const Tensor g = in.tensor().contiguous_rows(), xyz = in.tensor(), c = in.tensor();
  const std::vector<int64_t> wanted = in.integers();  // of g, of xyz
  Tensor gg = wanted.at(0) ? g.empty_like() : Tensor(), gxyz = wanted.at(1) ? xyz.empty_like() : Tensor();
  run(table, in.flag(), xyz, g, c, gg, gxyz);
  for (Tensor* t : {&gg, &gxyz}) out.push_back(*t ? std::move(*t) : Tensor::empty({0}, xyz.dtype()));
}
static constexpr Op bwdbwd_op{
    .name = "spherical_harmonics_bwdbwd",
    .schema = "(Tensor g, Tensor xyz, Tensor c, bool[] wanted, " CONSTANTS " -> (Tensor, Tensor)",
    .run = bwdbwd};
static const Registered<bwdbwd_op> register_bwdbwd;

}  // namespace eqtp
