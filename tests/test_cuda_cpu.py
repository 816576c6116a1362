"""The emulation of CUDA on the CPU (cuda_cpu.h, emulation.py): it computes what CUDA would, and it finds the bugs that
it is said to find."""

import emulation
import pytest
import torch

SETTINGS = [("forward", 1), ("reverse", 1), ("random", 1), ("random", 3)]
BUGS = [
    "NONE",
    "MISSING_BARRIER",
    "DIVERGENT_BARRIER",
    "DIVERGENT_WARP",
    "GLOBAL_OVERRUN",
    "SHARED_OVERRUN",
    "STATIC_OVERRUN",
]
BUGS += ["UNDEFINED_DYNAMIC", "UNDEFINED_STATIC"]
SCAN = {f"eqtp::scan_kernel<eqtp::{bug}>": ["const float*", "float*"] for bug in BUGS}
TOTAL = {
    f"eqtp::total_kernel<{number}, {race}>": [f"const {number}*", "double*" if number == "double" else "float*"]
    for number, race in [("float", "false"), ("double", "false"), ("eqtp::bf16", "false"), ("float", "true")]
}
TURN = {f"eqtp::turn_kernel<{sync}>": ["const int*", "int*"] for sync in ("true", "false")}
WARPS = """
#include "common/device.cuh"
// y: [16, threads], one row for each warp operation
__global__ void warp_kernel(int* y) {
  const unsigned full = 0xffffffffu, t = threadIdx.x + blockDim.x * threadIdx.y, n = blockDim.x * blockDim.y;
  int r[] = {__shfl_sync(full, int(t), 3), __shfl_sync(full, int(t), t + 1, 8),
             __shfl_xor_sync(full, int(t), 5), __shfl_xor_sync(full, int(t), 9, 8),
             __shfl_up_sync(full, int(t), 3), __shfl_up_sync(full, int(t), 3, 8),
             __shfl_down_sync(full, int(t), 3), __shfl_down_sync(full, int(t), 3, 8),
             int(__ballot_sync(full, t % 3 == 0)), __any_sync(full, t == 40), __all_sync(full, t < 32),
             0, 0, int(threadIdx.x), int(threadIdx.y), 0};
  if (t % 2) r[11] = __shfl_xor_sync(0xaaaaaaaau, int(t), 2);  // the two halves of a warp apart
  else r[11] = int(__ballot_sync(0x55555555u, t % 4 == 0));
  r[12] = int(__shfl_xor_sync(full, 3e9 + t, 1) - 3e9);  // 8 bytes
  r[15] = min(int(t), 7) + max(__popc(t), 2) * 100;
  for (int i = 0; i < 16; ++i) y[i * n + t] = r[i];
}
__global__ void atomic_kernel(int* sum, float* fsum, int* most, unsigned long long* wide) {
  atomicAdd(sum, 1), atomicAdd(fsum, 0.5), atomicAdd(wide, 1ull << 33);
  atomicMax(most, int(threadIdx.x * 7 % 64 + blockIdx.y + 10 * blockIdx.z));
}
__global__ void order_kernel(int* turn, int* y) { y[threadIdx.x] = atomicAdd(turn, 1); }
template <class T>
__global__ void convert_kernel(const T* x, float* y, const float* a, T* b, eqtp::Index n, eqtp::Index m) {
  const eqtp::Index first = threadIdx.x + blockDim.x * blockIdx.x, step = blockDim.x * gridDim.x;
  for (eqtp::Index i = first; i < n; i += step) y[i] = eqtp::read(x[i]);
  for (eqtp::Index i = first; i < m; i += step) eqtp::write(b + i, a[i]);
}
__global__ void vector_kernel(const float4* x, double2* y, bool twice, unsigned n, double s, int* none) {
  const float4 v = __ldg(x + threadIdx.x);
  const double product = eqtp::fused(double(v.z), s, double(v.w)) * (twice ? 2 : 1);
  if (threadIdx.x < n && !none) y[threadIdx.x] = make_double2(v.x + v.y, product + rsqrtf(16.0f));
}
"""
CONVERT = ["{0}*", "float*", "const float*", "{0}*", "eqtp::Index", "long long"]
WARP_ENTRIES = {
    "warp_kernel": ["int*"],
    "atomic_kernel": ["int*", "float*", "int*", "unsigned long long*"],
    "order_kernel": ["int*", "int*"],
    "convert_kernel<eqtp::f16>": [t.format("eqtp::f16") for t in CONVERT],
    "convert_kernel<eqtp::bf16>": [t.format("eqtp::bf16") for t in CONVERT],
    "vector_kernel": ["const float4*", "double2*", "bool", "unsigned", "double", "int*"],
}


def planted(sanitize=None):
    reason = emulation.why_not(sanitize)
    if reason:
        pytest.skip(reason)
    kernels = emulation.build('#include "cuda/planted.cuh"\n', SCAN | TOTAL | TURN, sanitize)
    return {name.removeprefix("eqtp::").replace("eqtp::", ""): kernel for name, kernel in kernels.items()}


def warps():
    return emulation.build(WARPS, WARP_ENTRIES)


def scan(kernels, bug, threads=64, blocks=3):
    """The kernel's result and the right one; small whole numbers, so that sums are exact. [blocks, threads]"""
    x = (torch.arange(blocks * threads, dtype=torch.float32).reshape(blocks, threads) * 7) % 11
    y = torch.full_like(x, -1)
    kernels[f"scan_kernel<{bug}>"](blocks, threads, 4 * threads, x, y)
    return y, x.cumsum(1)


def total(kernels, number, race, blocks, threads=64):
    dtype = {"float": torch.float32, "double": torch.float64, "bf16": torch.bfloat16}[number]
    x = ((torch.arange(blocks * threads) * 7) % 11).to(dtype)
    y = torch.zeros(1, dtype=torch.float64 if number == "double" else torch.float32)
    kernels[f"total_kernel<{number}, {race}>"]((blocks,), (threads, 1), 0, x, y)
    return y.item(), x.double().sum().item()


def turn(kernels, sync="true"):
    x = torch.arange(64, dtype=torch.int32)
    y = torch.zeros_like(x)
    kernels[f"turn_kernel<{sync}>"](1, 64, 256, x, y)
    return y, x.reshape(2, 32).flip(1).reshape(64)


@pytest.fixture(params=SETTINGS, ids=str)
def settings(request, monkeypatch):
    monkeypatch.setenv("EQTP_CPU_ORDER", request.param[0])
    monkeypatch.setenv("EQTP_CPU_THREADS", str(request.param[1]))


# ------------------------------------------------------------------------ what it computes
@pytest.mark.parametrize("threads", [32, 96, 256])
def test_blocks(settings, threads):
    """Shared memory of both kinds, barriers, shuffles and atomics, in every order of the threads."""
    kernels = planted()
    for blocks in (1, 2, 7):
        assert torch.equal(*scan(kernels, "NONE", threads, blocks))
        for number in ("float", "double", "bf16"):
            result, expected = total(kernels, number, "false", blocks, threads)
            assert result == expected


def test_partial_warp(settings):
    assert torch.equal(*scan(planted(), "NONE", 41))


def test_syncwarp(settings):
    assert torch.equal(*turn(planted()))


def test_warp_operations(settings):
    y = torch.full((16, 64), -1, dtype=torch.int32)
    warps()["warp_kernel"](1, (16, 4), 0, y)
    threads = range(64)

    def lane(t, l):
        return t // 32 * 32 + l

    votes = [sum(1 << l for l in range(32) if lane(t, l) % 3 == 0) for t in threads]
    expected = [
        [lane(t, 3) for t in threads],
        [t // 8 * 8 + (t + 1) % 8 for t in threads],
        [t ^ 5 for t in threads],
        # from a group of lower lanes it may read, from a higher one not
        [t ^ 9 if t % 16 >= 8 else t for t in threads],
        [t - 3 if t % 32 >= 3 else t for t in threads],
        [t - 3 if t % 8 >= 3 else t for t in threads],
        [t + 3 if t % 32 + 3 < 32 else t for t in threads],
        [t + 3 if t % 8 + 3 < 8 else t for t in threads],
        [v - (v >> 31 << 32) for v in votes],
        [int(t >= 32) for t in threads],
        [int(t < 32) for t in threads],
        [t ^ 2 if t % 2 else 0x11111111 for t in threads],
        [t ^ 1 for t in threads],
        [t % 16 for t in threads],
        [t // 16 for t in threads],
        [min(t, 7) + max(t.bit_count(), 2) * 100 for t in threads],
    ]
    for row, wanted in zip(y.tolist(), expected, strict=True):
        assert row == wanted


def test_shuffle_from_a_lane_that_is_not_there():
    """40 threads: what lane 3 of the second warp gets from lane 11 is undefined, here all bits one."""
    y = torch.zeros(16, 40, dtype=torch.int32)
    warps()["warp_kernel"](1, 40, 0, y)
    assert y[2, 32:].tolist() == [t ^ 5 for t in range(32, 40)]
    assert y[6, 32:].tolist() == [35, 36, 37, 38, 39, -1, -1, -1]


def test_orders(monkeypatch):
    def order(name, seed="0"):
        monkeypatch.setenv("EQTP_CPU_ORDER", name)
        monkeypatch.setenv("EQTP_CPU_SEED", seed)
        y = torch.zeros(64, dtype=torch.int32)
        warps()["order_kernel"](1, 64, 0, torch.zeros(1, dtype=torch.int32), y)
        return y.tolist()

    assert order("forward") == list(range(64)) and order("reverse") == list(range(64))[::-1]
    seen = [order("random", seed) for seed in ("0", "1", "1")]
    assert seen[0] != seen[1] == seen[2] and all(sorted(y) == order("forward") != y for y in seen)


def test_atomics(settings):
    counts = torch.zeros(2, dtype=torch.int32)
    half, wide = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    warps()["atomic_kernel"]((3, 2, 2), 64, 0, counts[:1], half, counts[1:], wide)
    assert counts.tolist() == [12 * 64, 63 + 1 + 10] and half.item() == 6 * 64 and wide.item() == 12 * 64 << 33


@pytest.mark.parametrize("name, dtype", [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision(name, dtype):
    """All 65536 values read; written: they, what lies halfway between neighbours, its own neighbours, and random
    bits."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    exact = x.float()
    sample = (
        torch.randint(-(2**31), 2**31, (1 << 18,), generator=torch.Generator().manual_seed(0))
        .to(torch.int32)
        .view(torch.float32)
    )
    halfway = (exact[:-1].double() + exact[1:].double()).div(2).float()
    ends = [torch.nextafter(halfway, torch.tensor(s * float("inf"))) for s in (1, -1)]
    edge = torch.tensor(
        [
            65504.0,
            65519.996,
            65520.0,
            65536.0,
            3.4e38,
            2**-24,
            2**-25,
            2**-25 * 1.0001,
            2**-26,
            2**-149,
            float("nan"),
            float("inf"),
            0.0,
        ]
    )
    a = torch.cat([exact, halfway, *ends, sample, edge, -edge])
    y, b = torch.zeros(65536), torch.zeros(len(a), dtype=dtype)
    warps()[f"convert_kernel<eqtp::{name}>"](2, 32, 0, x, y, a, b, len(x), len(a))
    for got, wanted, bits in ((y, exact, torch.int32), (b, a.to(dtype), torch.int16)):
        assert torch.equal(got.isnan(), wanted.isnan()) and got.isnan().any()
        number = ~wanted.isnan()
        assert torch.equal(got[number].view(bits), wanted[number].view(bits))


def test_vectors_and_scalars():
    x, y = torch.arange(32.0).reshape(8, 4), torch.zeros(8, 2, dtype=torch.float64)
    for twice in (False, True):
        warps()["vector_kernel"](1, 8, 0, x, y, twice, 7, 0.5, None)
        expected = torch.stack([x[:, 0] + x[:, 1], (x[:, 2] / 2 + x[:, 3]) * (1 + twice) + 0.25], 1).double()
        assert torch.equal(y[:7], expected[:7]) and (y[7] == 0).all()
    before = y.clone()
    warps()["vector_kernel"](1, 8, 0, x + 1, y, True, 7, 0.5, torch.zeros(1, dtype=torch.int32))
    assert torch.equal(y, before)


# ------------------------------------------------------------------------ bugs
def test_divergence_is_an_error(settings):
    kernels = planted()
    with pytest.raises(
        RuntimeError,
        match=r"block \(\d, 0, 0\): .*: 40 wait at __syncthreads, 0 in a warp operation, 24 have left the kernel",
    ):
        scan(kernels, "DIVERGENT_BARRIER")
    with pytest.raises(
        RuntimeError,
        match=r"block \(\d, 0, 0\): .*: 0 wait at __syncthreads, 32 in a warp operation, 32 have left the kernel",
    ):
        scan(kernels, "DIVERGENT_WARP")
    assert torch.equal(*scan(kernels, "NONE"))  # the emulation goes on after an error


def test_undefined_shared_memory_is_nan(settings):
    kernels = planted()
    for _ in range(2):  # in every block, whatever ran before
        y, expected = scan(kernels, "UNDEFINED_DYNAMIC")
        assert y[:, 5:].isnan().all() and torch.equal(y[:, :5], expected[:, :5])
        y, _ = scan(kernels, "UNDEFINED_STATIC")
        assert y.isnan().all()


def test_order_shows_a_race(monkeypatch):
    """Without a sanitizer a race shows as a result that depends on the order."""
    right = []
    for order in ("forward", "reverse", "random"):
        monkeypatch.setenv("EQTP_CPU_ORDER", order)
        right.append(torch.equal(*scan(planted(), "MISSING_BARRIER")))
    assert not all(right)


@pytest.mark.parametrize("sanitize", ["address", "thread"])
def test_right_kernels_are_clean(sanitize, monkeypatch):
    monkeypatch.setenv("EQTP_CPU_THREADS", "2")
    monkeypatch.setenv("EQTP_CPU_ORDER", "random")
    kernels = planted(sanitize)
    assert torch.equal(*scan(kernels, "NONE"))
    assert total(kernels, "bf16", "false", 5)[0] == total(kernels, "bf16", "false", 5)[1]
    assert torch.equal(*turn(kernels))


@pytest.mark.parametrize(
    "bug, report",
    [
        ("GLOBAL_OVERRUN", "heap-buffer-overflow"),
        ("SHARED_OVERRUN", "heap-buffer-overflow"),
        ("STATIC_OVERRUN", "index 2 out of bounds"),
    ],
)
def test_overruns(bug, report):
    with pytest.raises(RuntimeError, match=rf"(?s)planted.cuh.*{report}|{report}.*planted.cuh"):
        scan(planted("address"), bug)


def test_races(monkeypatch):
    kernels = planted("thread")
    with pytest.raises(RuntimeError, match=r"(?s)data race.*scan_kernel.*planted.cuh"):
        scan(kernels, "MISSING_BARRIER", blocks=1)
    with pytest.raises(RuntimeError, match=r"(?s)data race.*turn_kernel.*planted.cuh"):
        turn(kernels, "false")
    monkeypatch.setenv("EQTP_CPU_THREADS", "2")
    with pytest.raises(RuntimeError, match=r"(?s)data race.*total_kernel.*planted.cuh"):
        total(kernels, "float", "true", 4)


# ----------------------------------------------------------------------- the builder and the launch
@pytest.mark.parametrize(
    "grid, block, shared, message",
    [
        (0, 32, 0, "a grid must have"),
        ((1, 65536), 32, 0, "a grid must have"),
        (1, 0, 0, "1 to 1024 threads"),
        (1, (32, 33), 0, "1 to 1024 threads"),
        (1, (1, 1, 65), 0, "64 of them along z"),
        (1, 32, 228 * 1024, "227 KiB"),
    ],
)
def test_impossible_launches(grid, block, shared, message):
    with pytest.raises(RuntimeError, match=rf"turn_kernel.*launch: .*{message}"):
        planted()["turn_kernel<true>"](grid, block, shared, None, None)


@pytest.mark.parametrize(
    "name, value", [("EQTP_CPU_ORDER", "backwards"), ("EQTP_CPU_THREADS", "0"), ("EQTP_CPU_THREADS", "many")]
)
def test_wrong_settings(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match=f"{name} must be"):
        turn(planted())


MASKS = """
#include "common/device.cuh"
__global__ void others_mask_kernel() { __syncwarp(threadIdx.x < 16 ? 0xffff0000u : 0x0000ffffu); }
__global__ void two_operations_kernel(int* y) { *y = threadIdx.x < 16 ? __shfl_sync(~0u, 1, 0) : __any_sync(~0u, 1); }
"""


def test_wrong_warp_operations():
    kernels = emulation.build(MASKS, {"others_mask_kernel": [], "two_operations_kernel": ["int*"]})
    with pytest.raises(RuntimeError, match="__syncwarp: the mask lacks the lane that calls"):
        kernels["others_mask_kernel"](1, 32, 0)
    with pytest.raises(RuntimeError, match="lanes of one warp meet in __shfl_sync and in __any_sync"):
        kernels["two_operations_kernel"](1, 32, 0, torch.zeros(1, dtype=torch.int32))


def test_wrong_arguments():
    kernel, x = planted()["turn_kernel<true>"], torch.zeros(4, 4, dtype=torch.int32)
    for arguments in ((x,), (x, 3), (x, x.T)):
        with pytest.raises(TypeError, match="turn_kernel"):
            kernel(1, 4, 16, *arguments)
    with pytest.raises(ValueError, match="parameters must be pointers or one of"):
        emulation.build("struct S {}; __global__ void f(S) {}", {"f": ["S"]})
    with pytest.raises(ValueError, match="sanitize must be one of"):
        emulation.run_program("int main() {}", "memory")


def test_errors_of_compiler_and_program():
    with pytest.raises(RuntimeError, match="CUDA has no such atomicMax"):
        emulation.build("__global__ void f(float* y) { atomicMax(y, 1.0f); }", {"f": ["float*"]})
    program = "#include <cstdio>\nint main(int n, char** a) { std::puts(a[n - 1]); return n - 2; }"
    assert emulation.run_program(program, None, "text") == "text\n"
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1.*two"):
        emulation.run_program(program, None, "one", "two")


def test_libraries_share_nothing():
    """Two sources with a kernel of one name, but static shared memory of different size."""
    source = "template <int N> struct Tables {{ static constexpr int n = {0}; }};\n"
    source += "template <class T> __global__ void f(int* y) "
    source += "{{ __shared__ int s[T::n]; s[T::n - 1] = T::n; *y = s[T::n - 1]; }}"
    built = [emulation.build(source.format(n), {"f<Tables<0>>": ["int*"]}) for n in (1, 4000)]
    for kernels, n in [*zip(built, (1, 4000), strict=True)] * 2:
        y = torch.zeros(1, dtype=torch.int32)
        kernels["f<Tables<0>>"](1, 1, 0, y)
        assert y.item() == n
