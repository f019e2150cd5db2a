# The doors of the project: `make help` lists them.
#
# Promise: each door works in a fresh clone with Python 3.11 or newer and make; what it needs is
# installed into .venv the first time, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
# Two processes of tests, each with one thread: faster than one process with two threads.
WORKERS ?= 2

# A comma, which make would take for the end of an argument.
, := ,
BIN := .venv/bin
DEV := .venv/dev.stamp
ALL := .venv/all.stamp
NATIVE := .venv/native.stamp
KERNELS := CMakeLists.txt $(wildcard fathom/ops/native/*/*.cpp fathom/ops/native/*/*.h)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --durations=5
# What mypy reads besides the library, as soon as there is any.
SCRIPTS := $(sort $(dir $(wildcard bench/*.py)))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help quickstart native native-check check test test-long format clean

help: ## list these doors
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(DEV) $(NATIVE) ## train, test and talk to a small model, in minutes
	$(BIN)/fathom quickstart

native: $(DEV) ## build the native kernels, where one of their sources changed
	$(call build)

native-check: $(DEV) $(NATIVE) ## the native kernels under sanitizers, and on aarch64 under an emulator
	tests/native/check

check: $(DEV) $(NATIVE) ## format, lint, types, house laws and fast tests: under three minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy fathom $(SCRIPTS)
	$(PYTEST) -m "not slow and not oracle"

test: $(DEV) $(NATIVE) ## every test that needs no other implementation: under ten minutes
	$(PYTEST) -m "not oracle"

test-long: $(ALL) $(NATIVE) native-check ## the tests that compare with other implementations; native-check
	$(PYTEST) -m oracle

format: $(DEV) ## format the code and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the virtual environment, caches and builds; runs/ stays
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis fathom/ops/native/*.so
	find bench examples fathom tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null; :

define build
	$(BIN)/cmake -S . -B build/native -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python >/dev/null && $(BIN)/cmake --build build/native
endef

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Fathom needs Python 3.11 or newer; '$(PYTHON)' is missing or older."; \
	  echo "Name another one, for instance: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing into .venv; the first time this takes some minutes."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(1)]'
endef

$(DEV): pyproject.toml constraints.txt
	$(call install,dev)
	@touch $@

$(NATIVE): $(DEV) $(KERNELS)
	@$(call build) || echo "The native kernels were not built (a C++20 compiler is needed);" \
	  "everything works without them, only slower. \`fathom doctor\` says what is lost."
	@touch $@

$(ALL): pyproject.toml constraints.txt
	$(call install,dev$(,)oracle$(,)data$(,)tensorboard)
	@touch $(DEV) $@
