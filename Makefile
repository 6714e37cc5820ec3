# Each target makes .venv when it is missing, is quick when it is there, and prints what it does.
# The first of these that runs; a peer of the benchmarks needs 3.12 or newer.
runs = $(shell for p in $(1); do $$p -c 'import sys; sys.exit(sys.version_info < ($(2)))' 2>/dev/null && echo $$p && break; done)
PYTHON ?= $(or $(call runs,python3.11 python3.12 python3.13 python3,3$(comma)11),python3.11)
comma  := ,
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH_VENV = .venv-bench
BENCH  := $(BENCH_VENV)/.installed
BENCH_PYTHON ?= $(or $(call runs,python3.13 python3.12 python3 $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python3),3$(comma)12),$(PYTHON))
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export OMP_NUM_THREADS ?= 1

.PHONY: help demo check test test-all device-check bench docs reference lint data browser clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name a Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3"; exit 2; }
	@echo "== installing pullback and its development extras into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,kernels,chem,dist,dev]'
	@touch $@

$(BENCH): pyproject.toml constraints.txt
	@echo "== installing pullback and the peers that the benchmarks compare with into $(BENCH_VENV), on $(BENCH_PYTHON)"
	@test -x $(BENCH_VENV)/bin/python || $(BENCH_PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install -q --upgrade pip setuptools wheel
	$(BENCH_VENV)/bin/python -m pip install -q -c constraints.txt -e '.[lab,kernels,bench]'
	@# Peers that name older versions of numpy, typeguard or pip than they run with, or a test runner.
	$(BENCH_VENV)/bin/python -m pip install -q --no-deps 'qpth>=0.0.18' 'torchsde>=0.2.6' 'trampoline>=0.1.2' \
		'torchode>=1.0.1' 'torchtyping>=0.1.5' 'typeguard<3' 'pypose>=0.9' 'torch-topological>=0.1.8' 'giotto-ph>=0.2.4'
	@# Its authors keep it on GitHub alone.
	@$(BENCH_VENV)/bin/python -m pip install -q --no-build-isolation --no-deps \
		'notears @ git+https://github.com/xunzheng/notears@4a9ab19fe502e392503da331773c5223d82d3666' \
		|| echo "make: notears could not be fetched from GitHub: its rows will say so"
	@# A C++ extension, built against this torch. The short PATH hides nvcc: its CPU part is what is compared.
	@PATH=/usr/bin:/bin $(BENCH_VENV)/bin/python -m pip install -q --no-build-isolation --no-deps 'torchsort>=0.1.10' \
		|| echo "make: torchsort could not be built (is there a C++ compiler?): its rows will say so"
	@touch $@

demo: $(STAMP)  ## audit, relax and train the demo pipeline on real digits; writes an HTML page
	@echo "== running the demo"
	OMP_NUM_THREADS=2 $(BIN)/pullback demo

data: $(STAMP)  ## every data set that systems and tests read, 0.4 GB of packages, 0.2 GB in the user's cache
	@echo "== fetching the data of every system and test (kept in the user's cache)"
	$(BIN)/pullback data fetch --all

lint: $(STAMP)  ## lint, format, types, import rules
	@echo "== lint, format, import rules, types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

browser: $(STAMP)
	@echo "== looking for headless Chromium"
	@$(BIN)/python tests/e2e/ensure_chromium.py

check: $(STAMP)  ## the inner loop of one family: make check FAMILY=discrete
	@test -d src/pullback/$(or $(FAMILY),.) -a -n "$(FAMILY)" || { echo "make: say which family, such as: make check FAMILY=discrete"; exit 2; }
	@echo "== lint, format, import rules, types"
	$(BIN)/ruff check -q .
	$(BIN)/ruff format -q --check .
	$(BIN)/lint-imports
	$(BIN)/mypy -p pullback.$(FAMILY)
	@echo "== doctests, contracts, tests and smokes of $(FAMILY)"
	$(BIN)/python -m pytest -q -n 2 --doctest-modules src/pullback/$(FAMILY)
	$(BIN)/python -m pytest -q -n 2 -m "not slow" tests/test_house.py $(wildcard tests/contracts/$(FAMILY) tests/$(FAMILY))
	$(BIN)/python -m pytest -q -n 2 tests/contracts/test_completeness.py tests/systems -k $(FAMILY)

test: lint data browser  ## everything CI runs
	@echo "== doctests, and once more as on a processor without vector instructions"
	$(BIN)/python -m pytest -q --doctest-modules src -n 2
	ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -q --doctest-modules src -n 2
	@echo "== tests"
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: lint data browser  ## the slow tests too
	$(BIN)/python -m pytest -q -n 2

device-check:  ## the laws, relaxed, the kernels' fallbacks and the demo on CUDA, with torch, numpy, numba, pytest, hypothesis
	@echo "== laws, relaxed, fallbacks and demo on $(or $(DEVICE),cuda)"
	PYTHONPATH=src $(or $(DEVICE_PYTHON),python3) tests/device/check.py $(DEVICE)

bench: $(BENCH)  ## every block against its peers, as ratios
	OMP_NUM_THREADS=1 $(BENCH_VENV)/bin/pullback bench

docs: $(STAMP)  ## build site/: the guide, the reference from the docstrings, and in site/gallery/ the systems with the results in runs/
	@echo "== the guide and the reference"
	$(BIN)/sphinx-build -q -W --keep-going -d build/doctrees docs site
	@echo "== the systems' pages"
	$(BIN)/pullback gallery --out site/gallery

reference: $(STAMP)  ## keep the systems' runs in runs/ as the reference runs that the gallery shows where there are none yet
	$(BIN)/python -m pullback.lab.gallery runs

clean:  ## remove the environment and what was built
	rm -rf $(VENV) $(BENCH_VENV) site build dist docs/reference
