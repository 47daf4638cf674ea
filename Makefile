# Everything a developer types. `make help` lists it. Needs Python 3.11 or newer and nothing else.

# The first Python on PATH that is new enough, unless PYTHON names one; deploy/install.py speaks when there is none.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; \
done; echo python3)
endif
VENV := .venv/bin/python
WORKERS ?= 2
T ?=

.DEFAULT_GOAL := help
.PHONY: help install run services test check lint bench schema openapi drift requirements clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-22s %s\n' "$$name" "$$text"; done

install: ## create .venv and install the pinned requirements
	@$(PYTHON) deploy/install.py

run: install ## PostgreSQL, Redis, a demo tenant, API on port 3000 (PORT=4000), worker, beat; Ctrl-C stops all
	@exec $(VENV) -m hpts.run

services: install ## PostgreSQL and Redis alone, in the foreground
	@exec $(VENV) -m hpts.embedded serve

test: install ## the whole suite on its own servers; T=path narrows it, WORKERS=n spreads it
	@$(VENV) -m pytest -n $(WORKERS) $(T)

check: install lint drift test ## what CI runs: lint, types, migrations, drift of schema and API document, tests

lint: install ## ruff, mypy, migrations that nobody wrote
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy
	$(VENV) -m deploy.throwaway manage.py makemigrations --check --dry-run

bench: install ## measure; results go to benchmarks/RESULTS.md
	@$(VENV) -m benchmarks

schema: install ## write docs/schema.sql from a freshly migrated database
	@$(VENV) -m deploy.throwaway --schema docs/schema.sql

openapi: install ## write docs/openapi.yaml
	@$(VENV) -m deploy.throwaway manage.py spectacular --file docs/openapi.yaml

drift: install ## fail when docs/schema.sql or docs/openapi.yaml is not what the code makes
	@$(VENV) -m deploy.throwaway --drift

requirements: install ## compile requirements*.in into requirements*.txt with hashes
	@for name in requirements requirements-dev; do \
		.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--custom-compile-command 'make requirements' $$name.in -o $$name.txt || exit; \
	done

clean: ## remove .venv and var (the demo's books too)
	rm -rf .venv var .mypy_cache .pytest_cache .ruff_cache
