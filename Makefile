# One word does it: `make quickstart`, `make test-fast`, `make test`, `make quality`. Needs Python 3.10 to 3.13 and nothing else.
#
#   PYTHON       the interpreter that .venv is made with           make test PYTHON=python3.12
#   PIP_ARGS     more options for `pip install`                    make test PIP_ARGS="--no-index --find-links wheels"
#   PYTEST_ARGS  more options for pytest                           make test PYTEST_ARGS="-x -k card"
#   COMPARE_ARGS options for benchmarks/compare/run.py              make compare COMPARE_ARGS=--quick
#   HARDENING_ARGS  options for benchmarks/hardening/run.py        make hardening HARDENING_ARGS="--part kills"
#   WORKERS      processes that share the tests, a thread each     make test WORKERS=8

PYTHON ?= python3
PIP_ARGS ?=
PYTEST_ARGS ?=
COMPARE_ARGS ?=
HARDENING_ARGS ?=
WORKERS ?= 2

# Threads that spin while they wait make everything several times slower as soon as another process wants a core.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0

VENV := .venv
BIN := $(VENV)/bin
PINNED := pyproject.toml constraints.txt

# Says what failed and how to go on, then stops; pip's own message stands above it.
define failed
{ echo "" >&2; echo "Set-up failed: $(1)" >&2; echo "$(2)" >&2; exit 1; }
endef

define install
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null \
	|| $(call failed,there is no pip in $(VENV).,Remove $(VENV) and run make again.)
@echo "Installing into $(VENV) (the first time fetches torch, which takes a while) ..."
@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e ".[$(1)]" \
	|| $(call failed,pip could not install the package.,Its reason stands above. PIP_ARGS passes options to pip; removing $(VENV) starts afresh.)
@touch $@
endef

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-fast peft-suite hardening real-model compare quality docs clean
.NOTPARALLEL:

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

quickstart: $(VENV)/.installed-test  ## Erase a few facts from the demo model and show before and after
	@$(BIN)/unierase quickstart

# A file goes to one worker, whose tests share what is slow to make. The order is that of tests/conftest.py.
RUN_TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-test  ## Run all tests (12 minutes on two cores)
	@$(RUN_TESTS) $(PYTEST_ARGS)

test-fast: $(VENV)/.installed-test  ## Run the tests that are not marked slow (2 minutes): while you work
	@$(RUN_TESTS) -m "not slow" --durations=10 $(PYTEST_ARGS)

peft-suite: $(VENV)/.installed-test  ## Run PEFT's own test-suite on the tuner
	@PIP_ARGS="$(PIP_ARGS)" $(BIN)/python tests_peft/run.py $(PYTEST_ARGS)

hardening: $(VENV)/.installed-hardening  ## Attack the package for 20 minutes: malicious adapters, kills, a soak, a fuzz
	@$(BIN)/python benchmarks/hardening/run.py $(HARDENING_ARGS)

real-model: $(VENV)/.installed-real-model  ## Fetch the real model of the benchmarks, SmolLM2-135M-Instruct
	@$(BIN)/python benchmarks/smollm2.py

compare: $(VENV)/.installed-compare  ## Measure every method side by side (3 hours; goes on where it was stopped)
	@$(BIN)/python benchmarks/compare/run.py $(COMPARE_ARGS)

quality: $(VENV)/.installed-dev  ## Check style, formatting, types, directions of imports, dead code, dependencies, docs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/vulture
	$(BIN)/deptry .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.installed-docs  ## Build the pages in docs/ into site/, with the reference from the docstrings
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "Open site/index.html"

clean:  ## Remove caches, build output and the quickstart's erasure; keeps .venv
	@rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .peft-suite quickstart-erasure
	@find . -name $(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is younger than what it was installed from, so a second call has nothing to do.
$(VENV)/.installed-test: $(PINNED) | $(BIN)/python
	$(call install,test)

$(VENV)/.installed-hardening: $(PINNED) | $(BIN)/python
	$(call install,hardening)

$(VENV)/.installed-real-model: $(PINNED) | $(BIN)/python
	$(call install,real-model)

$(VENV)/.installed-compare: $(PINNED) | $(BIN)/python
	$(call install,compare)

$(VENV)/.installed-docs: $(PINNED) | $(BIN)/python
	$(call install,docs)

$(VENV)/.installed-dev: $(PINNED) | $(BIN)/python
	$(call install,dev)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null \
		|| $(call failed,there is no $(PYTHON).,Install Python 3.10 to 3.13 or name one: make PYTHON=python3.12)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
		|| $(call failed,$(PYTHON) is not Python 3.10 to 3.13.,Name one that is: make PYTHON=python3.12)
	@$(PYTHON) -m venv $(VENV) \
		|| $(call failed,$(PYTHON) cannot make a virtual environment.,Debian and Ubuntu want the package python3-venv. Remove $(VENV) and run make again.)
