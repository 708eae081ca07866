# Everything starts here: `make quick` answers the question in small, `make test` and `make lint` check the code.
# Needs Python 3.11 or later, pip and make. PYTHON picks the interpreter, PIP_ARGS goes to pip (another index for
# torch, say), ARGS to pytest, the benchmarks or the study.

PYTHON ?= $(shell command -v python3 || command -v python)
VENV ?= .venv
BIN := $(VENV)/bin
PIP_ARGS ?=
ARGS ?=
SMOKE_OUT ?= runs/smoke
# -qq: errors only.
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt $(PIP_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install quick test lint bench bench-tables smoke cluster

help:
	@echo "make quick    install what is needed and run the quick study"
	@echo "make install  install with everything for development, in $(VENV)"
	@echo "make test     run the tests            (ARGS=... goes to pytest)"
	@echo "make lint     style, types, direction of imports"
	@echo "make smoke    every experiment and task, cut down to a check of the machinery"
	@echo "make cluster  tests on real Ray clusters of several node processes"
	@echo "make bench    speed, beside other libraries (make bench-tables: all tables of docs/benchmarks.md)"

# One stamp a set of extras, so that nothing is installed twice unless what to install has changed.
install: $(VENV)/.installed-dev

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No python3 or python found: install Python 3.11 or later, or pass PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("aligngap needs Python 3.11 or later, this is %d.%d; pass PYTHON=..." % v[:2])'
	"$(PYTHON)" -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-peers: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev,peers]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

$(VENV)/.installed-ray: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[dev,ray]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

quick: $(VENV)/.installed
	$(BIN)/aligngap run quick $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(ARGS)

# One process: each test has a cluster.
cluster: $(VENV)/.installed-ray
	$(BIN)/python -m pytest -n 0 -m slow tests/e2e/test_ray.py tests/unit/pipeline/test_slurm.py \
	  tests/contract/test_executors.py $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

smoke: $(VENV)/.installed
	$(BIN)/aligngap run paper --smoke --out "$(SMOKE_OUT)" $(ARGS)

bench: $(VENV)/.installed-peers
	$(BIN)/python -m benchmarks $(ARGS)

# The tables of docs/benchmarks.md, as Markdown: some twenty minutes on an idle machine.
bench-tables: $(VENV)/.installed-peers
	@for threads in 1 2; do $(BIN)/python -m benchmarks --shape all --threads $$threads || exit 1; echo; done
	@$(BIN)/python -m benchmarks.peer_study
