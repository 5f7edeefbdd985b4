# `make demo` and `make test` do all the set-up by themselves; they need Python 3.11 or newer, and a network the first time.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another Python makes another environment.
STAMP := $(VENV)/installed-with-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

.DEFAULT_GOAL := help
.PHONY: help demo servers test coverage soak bench growth unit lint types format collector lock audit clean

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Nothing comes in whose content is not pinned: every package by its hash, no package's build code is run, and what
# builds this one is among them. The last step may fetch nothing at all.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps

$(STAMP): pyproject.toml requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %d.%d; name another, such as: make demo PYTHON=python3.13" % sys.version_info[:2])'
	@echo "set-up      a virtual environment in $(VENV), once"
	@$(PYTHON) -m venv --clear $(VENV) || { echo "$(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv"; exit 1; }
	@echo "set-up      $$(grep -c == requirements/dev.txt) packages at most, each with the hash that requirements/dev.txt pins; about 30 s"
	@$(PIP) --require-hashes --only-binary :all: --requirement requirements/dev.txt
	@$(PIP) --no-index --no-build-isolation --editable .
	@touch $@
	@echo "set-up      done"

demo: $(STAMP) ## run the whole path here, and show where each record arrived (ONCE=1 stops by itself, DOCKER=1 uses compose)
	@$(BIN)/python -m examples.demo

servers: $(STAMP)
	@$(BIN)/python -m collector.build all >/dev/null
	@$(BIN)/python -m collector.opensearch >/dev/null

test: servers ## run every test; builds the Collector, VictoriaLogs, Prometheus and OpenSearch once, in 2 to 10 minutes
	@$(BIN)/pytest

coverage: servers ## run every test, and show the lines that none of them runs; a third longer
	@$(BIN)/pytest --cov --cov-report=term

soak: servers ## run the long forms of the proofs: kills, outages, full disks, a million records, hostile ASGI; about 70 minutes
	@$(BIN)/pytest -m soak -s

bench: $(STAMP) ## measure what audit costs, beside bare FastAPI and what else could be used; 12 minutes on a quiet machine
	@$(BIN)/python -m benchmarks $(BENCH)

growth: $(STAMP) ## measure how that cost grows, with rate, size, backlog and workers, and what the Collector takes; 12 minutes
	@$(BIN)/python -m benchmarks.growth $(BENCH)

unit: $(STAMP) ## run the tests that need no server
	@$(BIN)/pytest --ignore=tests/integration

lint: $(STAMP) ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP) ## check types, strictly
	@$(BIN)/mypy

format: $(STAMP) ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

collector: $(STAMP) ## build the Collector, and print where it is
	@$(BIN)/python -m collector.build otelcol

LOCK := $(BIN)/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	--only-binary :all: --no-emit-index-url --no-annotate --no-header

lock: $(STAMP) ## pin what the project needs anew, as pyproject.toml asks (UPGRADE=--upgrade takes the newest of all)
	@$(LOCK) $(UPGRADE) pyproject.toml --group dev --output-file requirements/dev.txt
	@$(LOCK) pyproject.toml --group example --constraint requirements/dev.txt --output-file requirements/example.txt
	@$(LOCK) --group build --constraint requirements/dev.txt --output-file requirements/build.txt
	@$(LOCK) --group go --output-file requirements/go.txt

audit: $(STAMP) ## ask the public advisories about everything that is pinned here: Python packages and Go modules
	@$(BIN)/python -m collector.audit $(AUDIT)

clean: ## remove what was set up here; the built servers stay in the user's cache
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
