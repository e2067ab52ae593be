# The way in. `make help` lists the targets. All that is needed: Linux, make, and Python 3.11 or newer.

PYTHON ?= python3
PORT ?= 8000
ARGS =

VENV := .venv
PY := $(VENV)/bin/python

# A stamp for what is installed, named after the lock's checksum: another lock is another stamp, and is installed again.
RUNTIME := $(VENV)/.runtime-$(shell cat requirements.txt | cksum | tr ' ' '-')
DEV := $(VENV)/.dev-$(shell cat requirements.txt requirements-dev.txt | cksum | tr ' ' '-')
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --no-input

# Those that need nothing but the project; benchmarks.learning needs JoeyNMT and transcripts.
BENCHMARKS := committing decoding serving training

# Tests wait as long as they compute: two processes for a core, four at most.
WORKERS := $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -ge 2 ] && echo 4 || echo 2)

# One thread for each test process: two processes that each start a thread per core are slower than one that does.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest

.DEFAULT_GOAL := help
.PHONY: help run test test-slow check format bench docs lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1 @\2/p' Makefile | awk -F@ '{ printf "%-18s %s\n", $$1, $$2 }'

run: $(RUNTIME) ## Serve the model that ships with the project on http://127.0.0.1:8000 (PORT=… for another port)
	@$(PY) -m server db upgrade
	@exec $(PY) -m server serve --port $(PORT) $(ARGS)

test: $(DEV) ## Run the whole suite but its slow tests, offline (ARGS=… goes to pytest)
	$(PYTEST) -m "not slow" --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(DEV) ## Run the slow tests
	$(PYTEST) -m slow --timeout 1800 $(ARGS)

check: $(DEV) ## Check format, lint, types, and the compose file against its schema
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m check_jsonschema --builtin-schema vendor.compose-spec docker-compose.yml

format: $(DEV) ## Format the code and mend what the linter can mend
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(DEV) ## Check the docs against the code: links, settings, messages, commands
	$(PYTEST) -q -k "doc and not slow" $(ARGS)

bench: $(RUNTIME) ## Measure: one JSON line a figure
	@for name in $(BENCHMARKS); do $(PY) -m benchmarks.$$name $(ARGS) || exit 1; done

# A lock holds for every build of torch, so neither the build's name nor the CUDA packages it brings are in it.
FREEZE := .lock/bin/python -m pip freeze --all --exclude pip --exclude turnwise \
	| sed 's/^\(torch==[0-9.]*\)+.*/\1/' | grep -vE '^(cuda-|nvidia-|triton==)'

lock: $(PY) ## Resolve the ranges in pyproject.toml anew and write both lock files
	rm -rf .lock && $(PY) -m venv .lock
	.lock/bin/python -m pip install --upgrade pip
	.lock/bin/python -m pip install "torch==2.13.0" .
	$(FREEZE) > .lock/runtime
	.lock/bin/python -m pip install ".[dev]"
	$(FREEZE) > .lock/all
	{ echo "# Written by make lock: all that the programs need, pinned."; cat .lock/runtime; } > requirements.txt
	{ echo "# Written by make lock: what tests and checks need besides."; echo "-r requirements.txt"; \
	  grep -vxFf .lock/runtime .lock/all; } > requirements-dev.txt
	rm -rf .lock build turnwise.egg-info

clean: ## Remove what can be made again; databases, models and runs stay
	rm -rf $(VENV) .lock .mypy_cache .ruff_cache .pytest_cache .hypothesis build turnwise.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "Turnwise needs" \
	  "Python 3.11 or newer. '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 || true)." \
	  "Name another one like this: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "'$(PYTHON)' comes without venv or ensurepip." \
	  "On Debian and Ubuntu the package python3-venv has them: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# An interrupted first run can leave an interpreter without pip behind.
$(RUNTIME): $(PY)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	$(PIP_INSTALL) -r requirements.txt
	@touch $@

$(DEV): $(PY)
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip
	$(PIP_INSTALL) -r requirements-dev.txt
	@touch $(RUNTIME) $@
