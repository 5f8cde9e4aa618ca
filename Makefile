# Everything goes into .venv and build/; nothing else on the machine is touched. Needs make and Python >= 3.11 with venv.

PYTHON ?= python3
# More arguments for every pip call, for example another index.
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# Written last, so that an interrupted install is done again; older than what it was made from, it is renewed.
STAMP := $(VENV)/.installed
# What tests, linters and benchmarks need beyond that.
DEV_STAMP := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install $(PIP_ARGS) -c constraints.txt

PROFILE ?= rpi4
MODEL ?=
OUT ?=
RECIPE ?=
NAME ?=
BUDGET ?=
DATA ?=
# More arguments of the command behind a target, for example ARGS='--quantize none --force'.
ARGS ?=
PYTEST_ARGS ?=
# Processes for all tests but those that hurt fleets on purpose: those have the machine to themselves.
WORKERS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo package compress bench chaos test test-fast lint format clean

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

venv: $(STAMP) ## make .venv and install into it what the other targets need

$(STAMP): pyproject.toml constraints.txt requirements-zoo.txt
	@rm -f $@
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Shardwire needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ": give another with PYTHON=")'
	@echo 'Installing into $(VENV): some minutes the first time.'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) editables hatchling setuptools
	@$(PIP) --no-build-isolation --editable '.[host,tflite,torch,report,broker]'
	@$(PIP) --no-build-isolation --no-deps -r requirements-zoo.txt
	@touch $@

$(DEV_STAMP): $(STAMP)
	@rm -f $@
	@$(PIP) --no-build-isolation --editable '.[dev,tracking]'
	@touch $@

demo: $(STAMP) ## package, deploy to three agents over MQTT, classify photos, compare
	@$(BIN)/shardwire demo $(ARGS)

package: $(STAMP) ## write a bundle: PROFILE=rpi4 MODEL=net.onnx OUT=folder RECIPE=file.toml
	@$(BIN)/shardwire package $(if $(MODEL),'$(MODEL)') --profile '$(PROFILE)' \
		$(if $(OUT),--out '$(OUT)') $(if $(RECIPE),--recipe '$(RECIPE)') $(ARGS)

compress: $(STAMP) ## search within a budget: MODEL=net.onnx DATA=photos/ BUDGET='top1-drop<=0.005' PROFILE=rpi4 OUT=folder
	@$(BIN)/shardwire compress $(if $(MODEL),'$(MODEL)') --profile '$(PROFILE)' $(if $(BUDGET),--budget '$(BUDGET)') \
		$(if $(DATA),--data '$(DATA)') $(if $(OUT),--out '$(OUT)') $(if $(RECIPE),--recipe '$(RECIPE)') $(ARGS)

bench: $(DEV_STAMP) ## print the figures of one benchmark: NAME=sharding
	@test -n '$(NAME)' || { echo 'Give NAME=, one of:' $(basename $(notdir $(shell grep -l '^KEYS = ' benchmarks/*.py))); exit 2; }
	@$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

chaos: $(DEV_STAMP) ## kill, pause, cut, slow and corrupt a fleet under load, and check that nothing is lost: under 20 minutes
	@sh tests/fetch_mosquitto.sh $(VENV)/mosquitto
	@$(BIN)/python -m benchmarks.chaos_models build/chaos
	@$(BIN)/shardwire chaos --plan benchmarks/chaos.toml --json build/chaos.json $(ARGS)

test: lint ## lint, then run all tests
	@sh tests/fetch_mosquitto.sh $(VENV)/mosquitto
	@$(BIN)/python -m pytest -n $(WORKERS) tests/unit tests/property tests/architecture $(PYTEST_ARGS)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup tests/conformance tests/integration $(PYTEST_ARGS)
	@$(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

test-fast: $(DEV_STAMP) ## the tests that take under a minute together
	@$(BIN)/python -m pytest -n $(WORKERS) -m 'not slow' tests/unit tests/property tests/architecture $(PYTEST_ARGS)

lint: $(DEV_STAMP) ## formatting, rules, types, boundaries between packages
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(DEV_STAMP) ## rewrite the files as the formatter wants them
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## remove .venv, caches and what was made
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find edge host firmware_profiles tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
