// Energy and forces of a crystal by a compiled SevenNet, without Python.
//
//   sevennet libeqtp_torch.so sevennet.pt2 crystal.txt
//
// sevennet.pt2 was written by CompiledModel.save; crystal.txt, as examples/sevennet_cpp.py writes it, has the cutoff in
// A, the number of atoms, the three cell vectors, then a line for each atom: atomic number, x, y, z.
#include <ATen/Functions.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <vector>

using Vector = std::array<double, 3>;

struct Crystal {
  double cutoff;
  Vector cell[3];
  std::vector<int64_t> numbers;  // [n]
  std::vector<Vector> positions;  // [n]
};

static Crystal read(const char* path) {
  std::ifstream in(path);
  Crystal crystal{};
  size_t n = 0;
  in >> crystal.cutoff >> n;
  for (Vector& row : crystal.cell) in >> row[0] >> row[1] >> row[2];
  crystal.numbers.resize(n), crystal.positions.resize(n);
  for (size_t i = 0; i < n; ++i) {
    Vector& p = crystal.positions[i];
    in >> crystal.numbers[i] >> p[0] >> p[1] >> p[2];
  }
  if (!in) throw std::runtime_error(std::string(path) + " is cut short");
  return crystal;
}

static Vector cross(const Vector& a, const Vector& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}
static double dot(const Vector& a, const Vector& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

struct Edges {
  std::vector<int64_t> from, to;  // [e]
  std::vector<float> vectors;  // [e, 3], position of `to` less that of `from`
};

// All pairs within the cutoff, periodic in three directions; positions may lie anywhere
static Edges neighbours(const Crystal& c) {
  const double volume = std::abs(dot(c.cell[0], cross(c.cell[1], c.cell[2])));
  int images[3];  // in each direction, beyond the two that atoms outside of the cell may need
  for (int d = 0; d < 3; ++d) {
    const Vector side = cross(c.cell[(d + 1) % 3], c.cell[(d + 2) % 3]);
    images[d] = int(c.cutoff * std::sqrt(dot(side, side)) / volume) + 2;
  }
  Edges edges;
  for (size_t i = 0; i < c.positions.size(); ++i)
    for (size_t j = 0; j < c.positions.size(); ++j)
      for (int a = -images[0]; a <= images[0]; ++a)
        for (int b = -images[1]; b <= images[1]; ++b)
          for (int k = -images[2]; k <= images[2]; ++k) {
            Vector r;
            for (int d = 0; d < 3; ++d)
              r[d] = c.positions[j][d] - c.positions[i][d] + a * c.cell[0][d] + b * c.cell[1][d] + k * c.cell[2][d];
            const double length = std::sqrt(dot(r, r));
            if (length > c.cutoff || length < 1e-8) continue;
            edges.from.push_back(int64_t(i)), edges.to.push_back(int64_t(j));
            for (const double x : r) edges.vectors.push_back(float(x));
          }
  return edges;
}

int main(int count, char** arguments) try {
  if (count != 4) throw std::runtime_error("sevennet libeqtp_torch.so sevennet.pt2 crystal.txt");
  if (!dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());  // registers eqtp's ops
  Crystal crystal = read(arguments[3]);
  Edges edges = neighbours(crystal);
  const int64_t n = int64_t(crystal.numbers.size()), e = int64_t(edges.from.size());

  edges.from.insert(edges.from.end(), edges.to.begin(), edges.to.end());
  const float volume = float(std::abs(dot(crystal.cell[0], cross(crystal.cell[1], crystal.cell[2]))));
  torch::inductor::AOTIModelPackageLoader model(arguments[2]);
  const std::vector<at::Tensor> inputs = {
      at::from_blob(crystal.numbers.data(), {n}, at::kLong),
      at::from_blob(edges.from.data(), {2, e}, at::kLong),
      at::from_blob(edges.vectors.data(), {e, 3}, at::kFloat),
      at::scalar_tensor(volume),
  };
  const std::vector<at::Tensor> outputs = model.run(inputs);  // energy, energies of atoms, forces, stress
  const at::Tensor forces = outputs.at(2).contiguous();  // [n, 3]
  std::printf("%ld atoms, %ld edges\nenergy %.8f eV\n", long(n), long(e), outputs.at(0).item<float>());
  for (int64_t i = 0; i < n; ++i) {
    const float* f = forces.data_ptr<float>() + 3 * i;
    std::printf("%3ld  %12.8f %12.8f %12.8f eV/A\n", long(i), f[0], f[1], f[2]);
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
