# `make help` lists the targets. Every target that runs something first installs what it needs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=
FIGURES_ARGS ?=
ROWS ?=

BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
CHECKED := decentral tests benchmarks paper_figures notebooks docs/conf.py docs/_extensions

# NumPy's BLAS threads beside XLA's get in each other's way; what loads NumPy before the tests' own setting needs it here.
export OPENBLAS_NUM_THREADS ?= 1
export OMP_NUM_THREADS ?= 1
# Most of the fast suite's time is compiling. The slow suite compiles as users do.
QUICK_TO_COMPILE := $(XLA_FLAGS) --xla_backend_optimization_level=0
# Without .pyc files every import of JAX costs a second more.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo notebooks docs figures test test-all bench validate-cost lint format hooks clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "decentral needs Python 3.11 or newer, \
	$(PYTHON) is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# A stamp per extra ("run": none): made again when pyproject.toml changes.
$(VENV)/.installed-run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

install: $(VENV)/.installed-test ## make .venv with the package (editable) and what the tests need

demo: $(VENV)/.installed-run ## run the packaged quickstart: prints a table and the path of a plot
	$(BIN)/decentral run quickstart

notebooks: $(VENV)/.installed-notebooks ## open the notebooks in Jupyter
	JUPYTER_CONFIG_PATH=notebooks/jupyter $(BIN)/jupyter lab notebooks

docs: $(VENV)/.installed-docs ## build the documentation into build/docs; a warning is an error
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky docs build/docs

figures: $(VENV)/.installed-test ## run the papers' experiments that are missing, draw their figures, check their claims
	$(BIN)/decentral figures $(FIGURES_ARGS)

test: $(VENV)/.installed-test ## the test suite, without the slow tests
	XLA_FLAGS="$(QUICK_TO_COMPILE)" $(PYTEST) -m "not slow" --numprocesses 2 $(PYTEST_ARGS)

test-all: $(VENV)/.installed-test ## the slow tests, and only those
	$(PYTEST) -m slow --verbose --durations=10 --numprocesses 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

bench: $(VENV)/.installed-test ## speed beside what one would write oneself: ratios from one run, event counts asserted
	$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

validate-cost: $(VENV)/.installed-test ## the cost model against published measurements: writes docs/validation.md; ROWS=file.json scores others
	$(BIN)/python -m decentral.cost.validation $(ROWS)

lint: $(VENV)/.installed-dev ## format, lint rules, types and import layers: checked, nothing changed
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## format the code and apply safe fixes
	$(BIN)/ruff format $(CHECKED)
	$(BIN)/ruff check --fix $(CHECKED)

hooks: $(VENV)/.installed-dev ## run the checks of `make lint` before each commit
	$(BIN)/pre-commit install

clean: ## remove caches and built files; .venv and runs/ stay
	rm -rf build dist .pytest_cache .ruff_cache .benchmarks .hypothesis .import_linter_cache
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +
