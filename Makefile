# One door to everything: `make` lists the targets, and a second run of any of them installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Of the libraries that ours is compared with; one has the same package name.
PEERS := .venv-peers
# Passed to pytest or the benchmarks, for instance: make test ARGS="-k sweep -x"
ARGS ?=

# What is imported is compiled when it is; most of what is installed never is.
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
# Two processes for each CPU, as many tests wait for others; at most eight, and --pdb makes it none.
# A file's tests stay together: a page's blocks follow each other, and a module's clusters are started
# once.
WORKERS = $(shell $(BIN)/python -c 'import os; print(min(8, 2 * (os.cpu_count() or 1)))')
# The tests start hundreds of processes: what Python compiles is kept, whatever the caller said.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
SOURCES := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test nightly bench check lint types imports docs format clean
# The check stops at its first failure, in this order; jobs in parallel would mix their output.
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "Options: PYTHON=python3.12 (to build $(VENV)), ARGS=\"-k sweep\" (to pytest, benchmarks)"

demo: $(VENV)/.demo ## Install the package and run the quickstart
	$(BIN)/python examples/quickstart.py

test: $(VENV)/.dev ## Run the tests, the README's and the docs' examples among them
	$(PYTEST) $(ARGS)

nightly: $(VENV)/.dev ## Run all tests, the long ones too
	$(PYTEST) -m "nightly or not nightly" $(ARGS)

bench: $(VENV)/.dev $(PEERS)/.made ## Measure, beside entropic 2.3.0, its neighbours and bare executors
	$(BIN)/python -m benchmarks --peers "$(CURDIR)/$(PEERS)/bin/python" --page docs/benchmarks.md $(ARGS)

check: lint types imports docs test ## Run lint, types, imports, docs and test: what CI runs

lint: $(VENV)/.dev ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev ## Check the types
	$(BIN)/mypy

imports: $(VENV)/.dev ## Check which module imports which
	$(BIN)/lint-imports

docs: $(VENV)/.dev ## Build the documentation, with warnings as errors, into build/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --write-all --quiet \
	    --builder html --doctree-dir build/doctrees docs build/docs

format: $(VENV)/.dev ## Format the code and repair what can be repaired
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

clean: ## Remove the virtual environment, caches and builds
	rm -rf $(VENV) $(PEERS) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Each stamp is written after its step has succeeded, so that a broken step is done again.
# The installation is editable: only a change of the dependencies repeats it.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	    echo "entropic needs Python 3.11 or later: there is no '$(PYTHON)'. Try: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "entropic needs Python 3.11 or later: '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.demo: $(VENV)/.made $(SOURCES)
	$(PIP_INSTALL) --constraint constraints.txt --editable . numpy
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP_INSTALL) --constraint constraints.txt --editable ".[all,dev,docs]"
	@touch $@

$(PEERS)/.made: $(VENV)/.made benchmarks/peers.txt
	$(BIN)/python -m venv --clear $(PEERS)
	$(PEERS)/bin/python -m pip --disable-pip-version-check --quiet install --requirement benchmarks/peers.txt
	@touch $@
