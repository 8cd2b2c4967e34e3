# Every task of the project in one command. Needs Python 3.10+, a C++17 compiler and make; the rest
# is installed into .venv on first use, and again when requirements.txt or the sources change.

PYTHON ?= python3
TORCH  ?= torch==2.13.0
ARGS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready-$(subst /,_,$(TORCH))
BUILT := $(VENV)/.built
CXX_FILES   := $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
FORMATTED   := $(CXX_FILES) tests/emulation/cuda.h
BUILD_FILES := $(CXX_FILES) csrc/sources.txt setup.py pyproject.toml version.txt

# torch finds ninja, and the tests find oskt, on PATH.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: help demo test lint format build cuda bench gpu clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "  Variables: PYTHON=$(PYTHON)  TORCH='$(TORCH)'  ARGS=   (make demo ARGS=--help, make test ARGS='-k kmeans')"

demo: $(BUILT) ## run the whole pipeline on drawn pedestrians
	$(IN_VENV) oskt demo $(ARGS)

test: lint $(BUILT) ## lint, then the whole test suite
	$(IN_VENV) python -m pytest $(ARGS)

lint: $(BUILT) ## ruff, mypy, clang-format and README's tables, changing nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(FORMATTED)
	$(BIN)/python tools/readme.py --check

format: $(READY) ## rewrite Python and C++ in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(FORMATTED)

build: $(BUILT) ## the environment and the extension in .venv

cuda: $(READY) ## compile-check the CUDA sources for sm_80 and sm_90; needs nvcc, no GPU
	$(IN_VENV) python tools/check_cuda.py

bench: $(BUILT) ## benchmarks on this CPU into bench/results/
	$(IN_VENV) python bench/measure.py $(ARGS)

gpu: ## on a GPU machine: build with PYTHON's CUDA torch, test, measure; installs nothing
	$(PYTHON) bench/gpu.py $(ARGS)

clean: ## remove .venv and everything built
	rm -rf $(VENV) build *.egg-info python/*.egg-info oskt_ext/_C.*.so

$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: PYTHON must be Python 3.10 or newer, got '$(PYTHON)', $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12." >&2; exit 1; }
	@echo 'int main() { if constexpr (true) return 0; }' | $${CXX:-c++} -std=c++17 -fsyntax-only -x c++ - || { \
	  echo "make: CXX must be a C++17 compiler, got '$${CXX:-c++}'. Install g++ 9 or newer, or set CXX." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q '$(TORCH)' -r requirements.txt
	rm -f $(VENV)/.ready-* $(BUILT)
	touch '$@'

$(BUILT): $(READY) $(BUILD_FILES)
	$(IN_VENV) python -m pip install -q --no-build-isolation -e .
	@$(BIN)/python -c "import oskt_ext; i = oskt_ext.build_info(); print('oskt_ext', i['version'], '| torch', i['torch'], '| CUDA kernels:', i['cuda_architectures'] or 'none', '(' + i['cuda_reason'] + ')')"
	touch $@
