// The operands of a row's edges on their way through shared memory: every worker has a ring of STAGES slots, uses the
// edge in one of them and has copies into the others under way, so that the memory always has something to do, whatever
// the registers leave room for. A lane copies the channels that it reads itself; y is copied by all lanes for all.
#pragma once
#include "channelwise/unit.cuh"
#include "common/async.cuh"

namespace eqtp {

// The rows that the edges of a row lead to, and that are gathered: of x, from sources, or of g, from destinations
enum Gathered { GATHER_X, GATHER_G };

__device__ constexpr int up_to_16(int bytes) { return (bytes + 15) / 16 * 16; }

// A slot, in bytes: w [NP, CHUNK], gathered x [NX, CHUNK] or g [NO, CHUNK], y [DIM2]; then tw, tx (with x), ty of the
// direction
template <class P, class U, Gathered FROM, bool TANGENT, class T>
struct Slot {
  static constexpr int LINE = U::CHUNK * int(sizeof(T)),  // a path or a component
      ROW = U::NP * LINE, Y = up_to_16(ROW + (FROM == GATHER_X ? U::NX : U::NO) * LINE),
                       Y_BYTES = P::DIM2 * int(sizeof(Real<T>)), HALF = up_to_16(Y + Y_BYTES),
                       Y_ALONG = HALF + (FROM == GATHER_X ? Y : up_to_16(ROW)),
                       SIZE = TANGENT ? up_to_16(Y_ALONG + Y_BYTES) : HALF;
  static constexpr int Y_COPY = Y_BYTES % 16 == 0 ? 16 : Y_BYTES % 8 == 0 ? 8 : 4;
};

// Starts the copies of y [DIM2]
template <class S, class U, class R>
__device__ __forceinline__ void copy_y(SharedAddress slot, int to, const R* y, const Place& at) {
  constexpr int COPIES = S::Y_BYTES / S::Y_COPY, NUMBERS = S::Y_COPY / int(sizeof(R));
  each<0, (COPIES + U::LANES - 1) / U::LANES>([&](auto N) {
    const int q = N * U::LANES + at.lane;
    if (COPIES % U::LANES == 0 || q < COPIES) copy_async<S::Y_COPY>(slot, to + q * S::Y_COPY, y + q * NUMBERS);
  });
}
// of the weights of all paths
template <class P, class S, class U, class T>
__device__ __forceinline__ void copy_weights(SharedAddress slot, int to, const T* w, const Place& at) {
  constexpr int BYTES = U::CPL * int(sizeof(T));
  w = opaque(w + at.u), to += at.lane * BYTES;
  each<U::PATH, U::PATH_END>([&](auto N) {
    constexpr int p = N;
    if constexpr (P::W[p] >= 0) copy_async<BYTES>(slot, to + (p - U::PATH) * S::LINE, w + Int<P::W[p]>::value);
  });
}
// of all blocks of a planar row of x or g
template <class P, class S, class U, Gathered FROM, class T>
__device__ __forceinline__ void copy_row(SharedAddress slot, int to, const T* row, const Place& at) {
  constexpr int BYTES = U::CPL * int(sizeof(T));
  row = opaque(row + at.u), to += at.lane * BYTES;
  using B = Blocks<P, U, FROM == GATHER_G>;
  each<B::FIRST, B::LAST>([&](auto Q) {
    constexpr int q = Q;
    each<0, B::dim(q)>([&](auto I) {
      constexpr int i = I;
      copy_async<BYTES>(slot, to + Int<B::at(q) + i>::value * S::LINE, row + Int<B::offset(q) + i * U::MUL>::value);
    });
  });
}

// The operands of an edge in a slot. Weights and columns of y are read path by path, so that neither they nor what is
// made of them takes registers for longer.
template <class P, class U, Gathered FROM, bool TANGENT, class T>
struct SharedOperands {
  static constexpr bool SHARED = true;
  using R = Real<T>;
  using S = Slot<P, U, FROM, TANGENT, T>;
  const unsigned char *slot, *own;  // all of it; from the first number of this lane
  __device__ __forceinline__ SharedOperands(const unsigned char* slot, const Place& at)
      : slot(slot), own(slot + at.lane * (U::CPL * int(sizeof(T)))) {}
  // component i of the gathered row
  __device__ __forceinline__ void row(int i, R* v) const { line(S::ROW + i * S::LINE, v); }
  // all of x, where it is gathered: x [NX, CPL], and tx along the direction
  __device__ __forceinline__ void read_x(R* x) const {
    EQTP_UNROLL
    for (int i = 0; i < U::NX; ++i) row(i, x + i * U::CPL);
  }
  __device__ __forceinline__ void read_x_along(R* tx) const {
    EQTP_UNROLL
    for (int i = 0; i < U::NX; ++i) line(S::HALF + S::ROW + i * S::LINE, tx + i * U::CPL);
  }
  // weights of path p; a path without has 1, and 0 along the direction
  template <int p>
  __device__ __forceinline__ void weights(Int<p>, R* v) const {
    weights<p>(0, R(1), v);
  }
  template <int p>
  __device__ __forceinline__ void weights_along(Int<p>, R* v) const {
    weights<p>(S::HALF, R(0), v);
  }
  // the columns of y that path p uses
  template <int p>
  __device__ __forceinline__ void columns(Int<p>, R* v) const {
    columns<p>(S::Y, v);
  }
  template <int p>
  __device__ __forceinline__ void columns_along(Int<p>, R* v) const {
    columns<p>(S::Y_ALONG, v);
  }

 private:
  __device__ __forceinline__ void line(int at, R* v) const {
    read_pack<U::CPL>(reinterpret_cast<const T*>(own + at), v);
  }
  template <int p>
  __device__ __forceinline__ void weights(int half, R none, R* v) const {
    if constexpr (P::W[p] >= 0) line(half + (p - U::PATH) * S::LINE, v);
    else {
      EQTP_UNROLL
      for (int c = 0; c < U::CPL; ++c) v[c] = none;
    }
  }
  template <int p>
  __device__ __forceinline__ void columns(int y, R* v) const {
    const R* const from = reinterpret_cast<const R*>(slot + y);
    each<P::Y[p], P::Y[p] + P::D2[p]>([&](auto j) { v[j] = read_again(from + j); });
  }
};

// The edges of a worker, in order: number n, + WORKERS, .. of a row of the CSR. Each lane looks up one of LANES edges,
// and those of the next LANES while these are used.
template <class U>
struct EdgeNumbers {
  const Index *order, *neighbour;
  int last, mine;  // of the row; of this lane, in the row
  unsigned edge, to, next_edge, next_to, after;  // of this lane, in these LANES edges, the next ones, those after them
  __device__ __forceinline__ EdgeNumbers(const Index* order, const Index* neighbour, int count, const Place& at)
      : order(order), neighbour(neighbour), last(count - 1), mine(at.worker + at.lane * U::WORKERS) {
    edge = look_up(), next_edge = look_up(), after = look_up();
    to = unsigned(neighbour[edge]), next_to = unsigned(neighbour[next_edge]);
  }
  __device__ __forceinline__ unsigned look_up() {  // beyond the last edge: the last one
    const unsigned e = unsigned(order[mine < last ? mine : last]);
    mine += THREADS;
    return e;
  }
  // Edge n of the worker and where it leads; n grows by one from call to call
  __device__ __forceinline__ void get(int n, unsigned& e, unsigned& s) {
    if (n > 0 && n % U::LANES == 0) {
      edge = next_edge, to = next_to, next_edge = after;
      next_to = unsigned(neighbour[next_edge]), after = look_up();
    }
    e = __shfl_sync(ALL_LANES, edge, n % U::LANES, U::LANES), s = __shfl_sync(ALL_LANES, to, n % U::LANES, U::LANES);
  }
};

// Calls use(e, some, operands) for the edges e = order[t] of the worker, t = begin + worker, + WORKERS, .. < end. All
// workers go round equally often, the last time perhaps with nothing (some is false). fold(last) is called by all of
// them after BLOCK_TERMS edges, and after the last one. rings: of the block. There are less than 2^32 edges and rows.
template <class P, class U, Gathered FROM, bool TANGENT, class T, class F, class E>
__device__ __forceinline__ void walk_edges(const ConvParams<T>& a, Index begin, Index end, const Place& at,
                                           unsigned char* rings, F&& use, E&& fold) {
  using S = Slot<P, U, FROM, TANGENT, T>;
  constexpr int STAGES = P::STAGES;
  static_assert(U::WORKERS * STAGES * S::SIZE <= P::RINGS, "ring_bytes of channelwise_tables.py");
  const int count = int(end - begin);
  if (count > 0) {
    unsigned char* const ring = rings + at.worker * (STAGES * S::SIZE);
    const SharedAddress shared(ring);
    EdgeNumbers<U> numbers(a.order + begin, a.neighbour, count, at);
    unsigned e[STAGES];  // of the slots, from the one in use
    const auto copy = [&](int n, int slot, unsigned& e) {  // the worker's n-th edge
      unsigned s;
      numbers.get(n, e, s);
      if (at.worker + n * U::WORKERS < count) {
        const int to = slot * S::SIZE;
        copy_weights<P, S, U>(shared, to, a.w.row(e), at);
        copy_row<P, S, U, FROM>(shared, to + S::ROW, (FROM == GATHER_X ? a.x : a.g).row(s), at);
        copy_y<S, U>(shared, to + S::Y, a.y.row(e), at);
        if constexpr (TANGENT) {
          copy_weights<P, S, U>(shared, to + S::HALF, a.tw.row(e), at);
          if constexpr (FROM == GATHER_X) copy_row<P, S, U, GATHER_X>(shared, to + S::HALF + S::ROW, a.tx.row(s), at);
          copy_y<S, U>(shared, to + S::Y_ALONG, a.ty.row(e), at);
        }
      }
      end_copies();
    };
    EQTP_UNROLL
    for (int n = 0; n < STAGES - 1; ++n) copy(n, n, e[n]);
    int slot = 0, terms = 0;
    EQTP_LOOP
    for (int n = 0; n * U::WORKERS < count; ++n) {
      wait_copies<STAGES - 2>();
      __syncwarp();  // all lanes have copied y, and have read the slot that is filled next
      copy(n + STAGES - 1, slot == 0 ? STAGES - 1 : slot - 1, e[STAGES - 1]);
      use(Index(e[0]), at.worker + n * U::WORKERS < count,
          SharedOperands<P, U, FROM, TANGENT, T>(ring + slot * S::SIZE, at));
      EQTP_UNROLL
      for (int q = 0; q < STAGES - 1; ++q) e[q] = e[q + 1];
      slot = slot + 1 == STAGES ? 0 : slot + 1;
      if (has_long_sums<Real<T>> && ++terms == BLOCK_TERMS && (n + 1) * U::WORKERS < count) fold(false), terms = 0;
    }
    __syncwarp();  // before the rings are used again
  }
  fold(true);
}

}  // namespace eqtp
