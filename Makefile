# One command each: `make` lists them. Everything happens inside this directory, except distribution packages (deploy/setup/packages*.txt).
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PY := .venv/bin/python
PYTEST := $(PY) -m pytest
# Least share of portal/ that tests must run through, in percent.
COVERAGE ?= 90
# Processes for the quick tiers.
JOBS ?= $(shell nproc)
# Who has done their tests takes over from those who have not.
PARALLEL := -n $(JOBS) --dist worksteal
# More arguments for pytest: make test-unit ARGS="-k quota -x"
ARGS ?=
measured = COVERAGE_FILE=.coverage.$(1) $(PYTEST) --cov --cov-report=

# Without cached bytecode each process of the portal takes seconds to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##### For users

.PHONY: run
run: setup ## set up what is missing and start the portal on 127.0.0.1:8080; Ctrl-C ends it
	@exec $(PY) -m portal serve

.PHONY: setup
setup: ## everything that `make run` does before it starts the portal
	@deploy/setup/setup.sh run

##### For developers

.PHONY: setup-dev
setup-dev: ## set-up plus linters, test tools, a browser, S3 clients, PostgreSQL, RabbitMQ and Redis
	@deploy/setup/setup.sh dev

.PHONY: test
test: setup-dev ## all tests: SQLite and PostgreSQL, a real guest, a real browser; then the coverage
	@rm -f .coverage .coverage.*
	$(call measured,unit) $(PARALLEL) tests/unit tests/contract
	TEST_DATABASE=postgresql $(call measured,postgresql) $(PARALLEL) tests/contract
	$(call measured,integration) tests/integration
	$(call measured,e2e) tests/e2e
	@$(MAKE) coverage

.PHONY: test-unit
test-unit: setup-dev ## unit tests only: seconds
	$(PYTEST) $(PARALLEL) tests/unit $(ARGS)

.PHONY: test-contract
test-contract: setup-dev ## what every resource type promises, on SQLite
	$(PYTEST) $(PARALLEL) tests/contract $(ARGS)

.PHONY: test-postgresql
test-postgresql: setup-dev ## the same promises on a PostgreSQL that the tests start themselves
	TEST_DATABASE=postgresql $(PYTEST) $(PARALLEL) tests/contract $(ARGS)

.PHONY: test-integration
test-integration: setup-dev ## with real engines: boots guests
	$(PYTEST) tests/integration $(ARGS)

.PHONY: test-e2e
test-e2e: setup-dev ## a browser against the whole portal
	$(PYTEST) tests/e2e $(ARGS)

.PHONY: coverage
coverage: ## join what the tiers measured and hold it against the limit
	@$(PY) -m coverage combine -q
	@$(PY) -m coverage xml -q
	@$(PY) -m coverage report --fail-under=$(COVERAGE)

.PHONY: check
check: setup-dev ## linters, types, import rule, security, drift between models and migrations, secrets
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m djlint --quiet --lint templates
	.venv/bin/lint-imports --no-cache
	$(PY) -m bandit -q -ll -r portal -c pyproject.toml
	$(PY) deploy/checks/secrets.py
	@# On a database of its own: a check changes nobody's.
	directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && DATABASE_URL= DB_NAME= DATA_DIR=$$directory $(PY) -m portal migrate --check
	@if command -v shellcheck >/dev/null; then shellcheck -x .ci/run deploy/setup/*.sh; fi

.PHONY: format
format: setup-dev ## let the formatters have their way
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: bench
bench: setup-dev ## measure the portal and print tables
	$(PY) -m bench

.PHONY: docs
docs: setup ## write the generated pages of docs/ anew
	$(PY) -m portal docs

.PHONY: lock
lock: setup ## choose new versions for everything pinned; read the change before it is committed
	@for list in requirements requirements-dev requirements-engine deploy/setup/tools deploy/setup/build deploy/setup/s3-clients; do \
	  .venv/tools/bin/uv pip compile -q --upgrade --generate-hashes --no-header --universal --python-version 3.11 $$list.in -o $$list.txt || exit 1; \
	done
	cd static && PATH="$(CURDIR)/.venv/tools/bin:$$PATH" npm install --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

.PHONY: clean
clean: ## remove what set-up and tests made; var/ with its machines and data stays
	rm -rf .venv static/vendor .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache htmlcov coverage.xml .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
