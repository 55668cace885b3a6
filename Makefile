# Every target prints what it does: `make help`. CI runs `make check` and `make test`, the same as people do.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-fast check format audit benchmark-gsm8k chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv and install everything from constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Autoclave needs Python 3.11 to 3.13, but '$(PYTHON)' is $$($(PYTHON) -V). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	# torch goes first and alone: with it in place no other package pulls a different build.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[ml,service,worker,local,client,evidence,wandb,otel,dev]'
	@touch $(STAMP)

demo: $(STAMP) ## the whole product once: poisoned upload -> training -> sanitised adapter -> table
	$(BIN)/autoclave demo

up: $(STAMP) ## start the embedded service on http://127.0.0.1:8000 until Ctrl-C
	$(BIN)/autoclave up

test: $(STAMP) ## the whole suite, fast tests first (PostgreSQL and Valkey run from wheels)
	$(BIN)/pytest -n logical --maxprocesses 4

test-fast: $(STAMP) ## only the tests not marked slow
	$(BIN)/pytest -n logical --maxprocesses 4 -m 'not slow'

check: $(STAMP) ## ruff, mypy, import-linter, alembic check on SQLite and PostgreSQL
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m service.schema --check

format: $(STAMP) ## let ruff format and fix what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

audit: ## known holes in the pinned packages (needs the network: PyPI, also for pip-audit itself)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  $(PYTHON) -m venv "$$folder" && \
	  "$$folder/bin/python" -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9,<3' && \
	  "$$folder/bin/pip-audit" --strict --disable-pip --no-deps --progress-spinner off -r constraints.txt

benchmark-gsm8k: $(STAMP) ## a GSM8K upload through the whole job: GSM8K=path/to/train.jsonl
	$(BIN)/python benchmarks/gsm8k_job.py --gsm8k $(GSM8K) --out benchmarks/results

chaos: $(STAMP) ## 200 jobs under kills, outages, full disks and jumping clocks, then an audit: CHAOS="--jobs 20"
	$(BIN)/python -m chaos --out benchmarks/results $(CHAOS)

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
