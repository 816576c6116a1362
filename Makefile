# Every target but gpu does all the set-up it needs: a virtual environment in .venv, torch, the package with its kernels, and what demo and tests use.
# Needed beforehand: Python 3.10 or newer and a C++20 compiler. Set-up runs again when pyproject.toml, setup.py, cmake_arguments.py,
# CMakeLists.txt or csrc/ change.
#
#   make demo    trained SevenNet-0 on real crystals, before and after eqtp.accelerate, and compiled; without: make demo ARGS=--no-compile
#   make test    every kind of check on its smallest case, minutes      make test TESTS="tests/test_plan.py -k normalization"
#   make test-all    and the tests marked long: the same checks on more shapes, workloads, types and architectures
#   make lint    ruff and clang-format  make fmt applies them
#   make fuzz    10,000 random ops, graphs, dtypes and strides under random transforms, against e3nn in float64, 10 to 20 minutes
#   make racecheck   the CUDA kernels on the CPU, watched for races, divergent barriers and writes out of bounds
#   make compile every GPU kernel of every named workload through the compilers, minutes: registers, spills; a GPU is not needed
#   make bench   timings against other libraries, into bench/results/, then docs/speedup.png and the tables of README.md and docs/benchmarks.md
#   make gpu     on a GPU machine, with the torch, nvcc, CuPy and Triton that it has: build, tests, compute-sanitizer, timings; no set-up, no network
#   make wheel   source distribution, wheel built from it, and tests of that wheel in an environment of its own
#   make setup   only the set-up        make clean removes all that make has made
# Set-up builds the CUDA kernels only where there is a GPU to run them, or with EQTP_CUDA=auto (nvcc must work) or 1; tests that compile
# them need no set-up. pip install and make wheel build them wherever nvcc works.

PYTHON ?= python3
VENV ?= .venv
# Arguments of pip for torch. It is installed only where the environment has none, so that yours can be put there first.
TORCH ?= torch==2.13.0
TESTS ?= tests
SETUP_CUDA := $(or $(EQTP_CUDA),$(if $(wildcard /dev/nvidia0 /dev/dxg),auto,0))
# Test processes, with one thread each
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -lt 8 ] && echo $$n || echo 8)
THREADS ?= 1

BIN := $(VENV)/bin
# A process that has no tests left takes some of the other's
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := setup.py cmake_arguments.py pyproject.toml CMakeLists.txt $(wildcard csrc/*/*)
FORMATTED := $(wildcard csrc/*/* tests/*.h tests/cuda/*)

.PHONY: demo test test-all lint fmt fuzz racecheck compile bench gpu wheel setup kernels clean

demo: setup
	$(BIN)/python examples/sevennet_dropin.py $(ARGS)

test: setup
	$(PYTEST) $(TESTS)

test-all: setup
	$(PYTEST) --timeout 1200 -m "long or not long" $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)

fmt: setup
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

fuzz: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --workers $(WORKERS) $(ARGS)

racecheck: setup
	$(PYTEST) -m "long or not long" tests/test_racecheck.py tests/test_cuda_cpu.py

compile: setup
	$(PYTEST) -rA --timeout 1200 -m "long or not long" tests/test_cuda_compile.py tests/test_triton_compile.py

setup: $(VENV)/installed

# Python compiles a module when it is first imported (--no-compile): of what is installed here few are.
# The kernels are compiled while pip downloads and unpacks torch: neither needs the other. The install finds the objects and links them.
$(VENV)/installed: $(VENV)/tools $(SOURCES)
	@echo "eqtp: building the kernels while pip installs $(TORCH)"
	@+$(MAKE) --no-print-directory -j 2 kernels $(VENV)/torch
	@echo "eqtp: installing the package and what demo and tests use"
	EQTP_CUDA=$(SETUP_CUDA) $(PIP) install -q --no-compile --no-build-isolation -e ".[demo,test,lint]"
	@$(BIN)/python -m eqtp
	@touch $@

kernels: $(VENV)/tools
	@mkdir -p build
	@EQTP_CUDA=$(SETUP_CUDA) $(BIN)/python setup.py -q build_ext > build/kernels.log 2>&1 || { cat build/kernels.log; exit 1; }

# torch before anything that depends on it
$(VENV)/torch: | $(VENV)/pyvenv.cfg
	@$(BIN)/python -c "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)" || $(PIP) install -q --no-compile $(TORCH)
	@touch $@

# What the build needs
$(VENV)/tools: | $(VENV)/pyvenv.cfg
	$(PIP) install -q "setuptools>=77" wheel "pybind11>=2.13" "cmake>=3.26,<5" ninja
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c "import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and f'eqtp needs Python 3.10 or newer, $(PYTHON) is {v}: make PYTHON=...')"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "eqtp: $(PYTHON) -m venv failed (on Debian and Ubuntu: install python3-venv)"; exit 1; }

# One thread by default: make bench THREADS=2
bench: $(VENV)/bench
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m bench tensor_product_conv --problem $(CONVS) --threads $(THREADS) \
	  --against e3nn,e3nn-script,e3nn-compile,cueq,cueq-irmul --json bench/results/tensor_product_conv-$(THREADS).json
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m bench spherical_harmonics --problem lmax3 lmax8 --threads $(THREADS) \
	  --against e3nn,sphericart,cueq --json bench/results/spherical_harmonics-$(THREADS).json
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m bench models --model 7net-0 --atoms 64,1000 --threads $(THREADS) \
	  --against e3nn --json bench/results/sevennet-$(THREADS).json
	$(BIN)/python docs/plot_speedup.py
CONVS ?= mace-medium sevennet-0 nequip-l nequip-lips sevennet-l3i5 mace-large

$(VENV)/bench: $(VENV)/installed
	$(PIP) install -q --no-build-isolation -e ".[bench]"
	@touch $@

# Stops after 530 seconds, which is too short for all of it: make gpu GPU="--steps build,tests" does some of the steps.
# Tables in bench/results/, logs in build/gpu/. Without a GPU: make gpu GPU=--rehearse
gpu:
	$(PYTHON) -m bench.gpu $(GPU)

# The wheel is tested, not the source tree: in an environment that has the wheel and, through a .pth file, the other packages of .venv.
wheel: setup
	rm -rf dist build/wheel-venv
	$(PIP) install -q build
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip install -q --disable-pip-version-check --no-deps dist/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > "$$(build/wheel-venv/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/packages.pth"
	cp -r tests build/wheel-venv/tests
	cd build/wheel-venv && bin/python -c "import eqtp, sys; assert eqtp.__file__.startswith(sys.prefix), eqtp.__file__" && bin/python -m eqtp
	cd build/wheel-venv && OMP_NUM_THREADS=1 bin/python -m pytest -q -n $(WORKERS) -p no:cacheprovider $(WHEEL_TESTS)
WHEEL_TESTS ?= $(addprefix tests/test_,plan.py tensor_product.py tensor_product_conv.py)

clean:
	rm -rf build dist *.egg-info eqtp/_native*.so .pytest_cache .ruff_cache .hypothesis examples/out $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
