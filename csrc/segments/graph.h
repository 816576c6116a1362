// Edges as int64 columns, and their CSR: what eqtp.Graph is made of on a CPU.
#pragma once
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

namespace eqtp {

// Copies of src and dst [e] as int64. An edge that does not count (valid [e], null: all do) gets source 0 and
// destination num_dst. Returns 2 e, or 2 e + 1, for the first edge whose source, or destination, is out of range;
// else -1.
template <class I>
inline int64_t copy_edges(const I* src, const I* dst, const bool* valid, int64_t e, int64_t num_src, int64_t num_dst,
                          int64_t* to_src, int64_t* to_dst) {
  for (int64_t i = 0; i < e; ++i) {
    const bool counts = !valid || valid[i];
    if (counts && (src[i] < 0 || src[i] >= num_src)) return 2 * i;
    if (counts && (dst[i] < 0 || dst[i] >= num_dst)) return 2 * i + 1;
    to_src[i] = counts ? int64_t(src[i]) : 0;
    to_dst[i] = counts ? int64_t(dst[i]) : num_dst;
  }
  return -1;
}

// CSR of index [n] with values in [0, num]; those that are num are in no segment. ptr [num + 1] and order [n], stable:
// the segments one after the other, then what is in none.
inline void sort_by(const int64_t* index, int64_t n, int64_t num, int64_t* ptr, int64_t* order) {
  std::memset(ptr, 0, sizeof(int64_t) * size_t(num + 1));
  bool sorted = true;
  for (int64_t e = 0; e < n; ++e) {
    sorted &= e == 0 || index[e - 1] <= index[e];
    if (index[e] < num) ++ptr[index[e] + 1];
  }
  for (int64_t i = 0; i < num; ++i) ptr[i + 1] += ptr[i];
  if (sorted) return std::iota(order, order + n, int64_t(0));
  std::vector<int64_t> next(ptr, ptr + num + 1);
  for (int64_t e = 0; e < n; ++e) order[next[size_t(index[e])]++] = e;
}

}  // namespace eqtp
