# Every target makes what it needs first; `make help` lists them.
# PYTHON=python3.12 picks the interpreter, UV= keeps to pip where uv is installed, ARGS='-k codec' goes to the tool.

SHELL := /bin/bash
PYTHON ?= python3
UV ?= $(shell command -v uv)
# Tests wait as long as they compute: twice the cores of a small machine keeps both busy.
WORKERS ?= 4
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HAS_DEBIAN := command -v kcat >/dev/null && command -v node >/dev/null && command -v npm >/dev/null
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test coverage test-chaos chaos chaos-explain soak lint format docs eval compat-check local-up local-down clean

help: ## Show this list
	@awk -F ':.*## ' \
	  '/^## / { printf "\n%s\n", substr($$0, 4) } \
	   /^[a-z%-]+:.*## / { sub(/%/, "NAME", $$1); printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

## Start here
demo: $(STAMP) ## The whole journey on this machine: real services, sample chat, five questions
	$(BIN)/rtfm-cli demo $(ARGS)

test: $(STAMP) ## Unit and integration tests, the latter on real services
	@$(HAS_DEBIAN) || echo "Tests marked debian are left out: they need the Debian packages kcat, nodejs and npm."
	$(BIN)/pytest -n $(WORKERS) tests/unit tests/integration $(if $(shell $(HAS_DEBIAN) && echo yes),,-m "not debian") $(ARGS)

coverage: $(STAMP) ## Unit and integration tests with branch coverage of rtfm/, at least 95%
	rm -rf .coverage && mkdir .coverage
	$(BIN)/coverage run -m pytest -n $(WORKERS) tests/unit tests/integration $(if $(shell $(HAS_DEBIAN) && echo yes),,-m "not debian") $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-chaos: $(STAMP) ## Tests that kill and freeze workers and brokers, on real services
	$(BIN)/pytest tests/chaos $(ARGS)

install: $(STAMP) ## Make .venv/ from requirements.lock

# pip takes hashes for all or for none, and an editable project has none: so the lock first, then the project.
# The lock is complete, which `pip check` proves; --no-deps keeps pip from asking for hashes of extras.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Error: $(PYTHON) is not Python 3.11 or later; say which one to use: make PYTHON=python3.12 install" >&2; exit 1; }
ifneq ($(UV),)
	test -x $(BIN)/python || "$(UV)" venv --quiet --seed --python "$$(command -v $(PYTHON))" $(VENV)
	"$(UV)" pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r requirements.lock
	"$(UV)" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	"$(UV)" pip check --quiet --python $(BIN)/python
else
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
endif
	@touch $@

## Check
lint: $(STAMP) ## Style, types, imports between rooms, and whether generated pages are up to date
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: $(STAMP) ## Put the source in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Write the generated pages anew
	$(BIN)/python docs/generate.py

compat-check: $(STAMP) ## Compare the schemas with the released ones, offline
	$(BIN)/rtfm-cli schemas check $(ARGS)

# What make chaos and make soak take: LOAD busy processes beside the run, RATE messages a second, RECORD=1 for
# docs/chaos-runs.md, and a folder to KEEP the run in.
RUN_OPTIONS = $(if $(SEED),--seed $(SEED)) $(if $(LOAD),--load $(LOAD)) $(if $(RATE),--rate $(RATE)) \
	$(if $(KEEP),--keep "$(KEEP)") $(if $(RECORD),--record) $(ARGS)

chaos: $(STAMP) ## Kill everything at every moment and account for all of it: SECONDS=120 SEED=7 LOAD=4 KEEP=FOLDER
	@exec $(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(RUN_OPTIONS)

chaos-explain: $(STAMP) ## The story of a question answered twice or not at all: DIR=FOLDER that chaos kept
	@exec $(BIN)/python -m tests.chaos.explain "$(DIR)" $(ARGS)

soak: $(STAMP) ## Chaos for HOURS=2 with memory, threads, handles, disk and lag over time, as a page
	@exec $(BIN)/python -m tests.chaos.soak $(if $(HOURS),--hours $(HOURS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(RUN_OPTIONS)

EVAL_DATA ?=
eval: $(STAMP) ## Quality of retrieval against the baseline; EVAL_DATA=FOLDER adds exports/ and questions.jsonl
	$(BIN)/python -m benchmarks.quality $(if $(EVAL_DATA),--data "$(EVAL_DATA)") $(ARGS)

bench-%: $(STAMP) ## One benchmark of benchmarks/, ARGS=--json for scripts
	$(BIN)/python -m benchmarks.$* $(ARGS)

## Run
local-up: $(STAMP) ## Start Kafka, the registry, Chroma and PostgreSQL here, without Docker
	$(BIN)/rtfm-cli local up $(ARGS)

local-down: $(STAMP) ## Stop them again
	$(BIN)/rtfm-cli local down $(ARGS)

clean: ## Remove what the tools left behind; keeps .venv/ and .rtfm/
	rm -rf build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
