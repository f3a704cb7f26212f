# Every target first makes what it needs; `make help` lists the targets.
# PYTHON=python3.12 selects the interpreter, UV= uses pip although uv is installed, ARGS='-k codec' is passed to the tool.

SHELL := /bin/bash
PYTHON ?= python3
UV ?= $(shell command -v uv)
# Tests wait about as long as they compute, so two workers per core of a small machine keep both cores busy.
WORKERS ?= 4
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
HAS_DEBIAN := command -v kcat >/dev/null && command -v node >/dev/null && command -v npm >/dev/null
NOT_DEBIAN = $(if $(shell $(HAS_DEBIAN) && echo yes),,-m "not debian")
SAY_WHAT_IS_SKIPPED := $(HAS_DEBIAN) || \
  echo "Skipping the tests marked debian: they need the Debian packages kcat, nodejs and npm."
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test test-unit test-integration test-chaos coverage lint style types compat-check format docs \
  hooks chaos chaos-explain soak eval local-up local-down clean

help: ## Show this list
	@awk -F ':.*## ' \
	  '/^## / { printf "\n%s\n", substr($$0, 4) } \
	   /^[a-z%-]+:.*## / { sub(/%/, "NAME", $$1); printf "  make %-17s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

## Start here
demo: $(STAMP) ## The whole journey on this machine: real services, sample chat, five questions
	$(BIN)/rtfm-cli demo $(ARGS)

test: $(STAMP) ## Unit and integration tests in one run
	@$(SAY_WHAT_IS_SKIPPED)
	$(BIN)/pytest -n $(WORKERS) tests/unit tests/integration $(NOT_DEBIAN) $(ARGS)

test-unit: $(STAMP) ## Unit tests, without services
	$(BIN)/pytest -n $(WORKERS) tests/unit $(ARGS)

test-integration: $(STAMP) ## Integration tests, on real services
	@$(SAY_WHAT_IS_SKIPPED)
	$(BIN)/pytest -n $(WORKERS) tests/integration $(NOT_DEBIAN) $(ARGS)

coverage: $(STAMP) ## Unit and integration tests with branch coverage of rtfm/, at least 95%
	rm -rf .coverage && mkdir .coverage
	$(BIN)/coverage run -m pytest -n $(WORKERS) tests/unit tests/integration $(NOT_DEBIAN) $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

test-chaos: $(STAMP) ## Tests that kill and freeze workers and brokers, on real services
	$(BIN)/pytest tests/chaos $(ARGS)

install: $(STAMP) ## Create .venv/ from requirements.lock

# pip checks hashes for all requirements or for none, and an editable project has none: so the lock comes first.
# The lock is complete, which `pip check` verifies; with --no-deps pip does not ask for hashes of extras.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Error: $(PYTHON) is not Python 3.11 or later; choose another: make PYTHON=python3.12 install" >&2; exit 1; }
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
lint: style types ## Style and types

style: $(STAMP) ## Style, imports between packages, generated pages and workflows, offline
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml

types: $(STAMP) ## Types, strictly
	$(BIN)/mypy

format: $(STAMP) ## Format the source
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP) ## Write the generated pages and the examples in the pages again
	$(BIN)/python docs/generate.py

compat-check: $(STAMP) ## Compare the schemas with the released ones, offline
	$(BIN)/rtfm-cli schemas check $(if $(GITHUB_ACTIONS),--format github) $(ARGS)

hooks: $(STAMP) ## Check each commit as .pre-commit-config.yaml says
	$(BIN)/pre-commit install

# Options of make chaos and make soak: LOAD busy processes next to the run, RATE messages per second, RECORD=1 to add a
# row to docs/chaos-runs.md, and a folder in which to KEEP the run.
RUN_OPTIONS = $(if $(SEED),--seed $(SEED)) $(if $(LOAD),--load $(LOAD)) $(if $(RATE),--rate $(RATE)) \
	$(if $(KEEP),--keep "$(KEEP)") $(if $(RECORD),--record) $(ARGS)

chaos: $(STAMP) ## Kill services at any moment and account for every record: SECONDS=120 SEED=7 LOAD=4 KEEP=FOLDER
	@exec $(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(RUN_OPTIONS)

chaos-explain: $(STAMP) ## The story of a question that was answered twice or not at all: DIR=FOLDER of a kept run
	@exec $(BIN)/python -m tests.chaos.explain "$(DIR)" $(ARGS)

soak: $(STAMP) ## Chaos for HOURS=2, with memory, threads, handles, disk and lag over time on one page
	@exec $(BIN)/python -m tests.chaos.soak $(if $(HOURS),--hours $(HOURS)) $(if $(SECONDS),--seconds $(SECONDS)) \
	  $(RUN_OPTIONS)

EVAL_DATA ?=
eval: $(STAMP) ## Compare retrieval with the baseline; EVAL_DATA=FOLDER adds exports/ and questions.jsonl
	$(BIN)/python -m benchmarks.quality $(if $(EVAL_DATA),--data "$(EVAL_DATA)") $(ARGS)

bench-%: $(STAMP) ## Run one benchmark of benchmarks/; ARGS=--json for scripts
	$(BIN)/python -m benchmarks.$* $(ARGS)

## Run
local-up: $(STAMP) ## Start Kafka, the registry, Chroma and PostgreSQL on this machine, without Docker
	$(BIN)/rtfm-cli local up $(ARGS)

local-down: $(STAMP) ## Stop them
	$(BIN)/rtfm-cli local down $(ARGS)

clean: ## Remove files that tools generated; keeps .venv/ and .rtfm/
	rm -rf build dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
