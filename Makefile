# Everything a developer types. `make help` lists it. Needs Python 3.11 or newer and nothing else.

# The first Python on PATH that is new enough, unless PYTHON names one; deploy/install.py speaks when there is none.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && exit; \
done; echo python3)
endif
VENV := .venv/bin/python
# A command with throw-away servers in its environment.
TEMPORARY := $(VENV) -m hpts.embedded temporary $(VENV)
WORKERS ?= 2
T ?=
NAME ?= acme

.DEFAULT_GOAL := help

.PHONY: help install run services partner-certs partner-host test test-long check lint drift bench bench-accrual bench-limits bench-webhooks schema openapi rules requirements licences audit sbom bench-proof clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-22s %s\n' "$$name" "$$text"; done

install: ## create .venv and install the pinned requirements
	@$(PYTHON) deploy/install.py

run: install ## PostgreSQL, Redis, a demo tenant, API on port 3000 (PORT=4000), worker, beat; Ctrl-C stops all
	@exec $(VENV) -m hpts.run --with-parent

services: install ## PostgreSQL and Redis alone, in the foreground
	@exec $(VENV) -m hpts.embedded serve

partner-certs: install ## a development authority and a partner's certificate below var/partner-certs; NAME=acme
	@$(VENV) -m deploy.partner_certs $(NAME)

partner-host: install ## nginx with mutual TLS in front of `make run`, in the foreground (PORT names the run's port)
	@exec $(VENV) -m deploy.partner_host

test: install ## the whole suite on its own servers; T=path narrows it, WORKERS=n spreads it
	@$(VENV) -m pytest -n $(WORKERS) $(T)

test-long: install ## the whole suite with the long variants: hours, not minutes
	@HPTS_LONG=1 $(VENV) -m pytest -n $(WORKERS) $(T)

check: install lint licences drift test ## what CI runs: lint, types, licences, missing migrations, drift of schema and API document, tests

lint: install ## ruff, mypy, and whether a migration is missing
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy
	$(TEMPORARY) manage.py makemigrations --check --dry-run

licences: install ## fail when a package has a licence that is not allowed
	@$(VENV) -m deploy.licences

audit: install ## ask the vulnerability databases about every pinned package (needs the network)
	@for file in requirements.txt requirements-dev.txt; do \
		$(VENV) -m pip_audit --disable-pip --require-hashes --progress-spinner off -r $$file || exit; \
	done

sbom: install ## write var/sbom.json, what the product is made of (CycloneDX)
	@$(VENV) -m cyclonedx_py requirements --output-reproducible --of JSON -o var/sbom.json requirements.txt

schema: install ## write docs/schema.sql from a freshly migrated database
	@$(TEMPORARY) -m deploy.schema docs/schema.sql

openapi: install ## write docs/openapi.yaml
	@$(TEMPORARY) manage.py spectacular --file docs/openapi.yaml

drift: install ## fail when docs/schema.sql or docs/openapi.yaml differs from what the code makes
	@$(TEMPORARY) -m deploy.schema var/drift/schema.sql
	@$(TEMPORARY) manage.py spectacular --file var/drift/openapi.yaml
	@diff -u docs/schema.sql var/drift/schema.sql || { echo 'docs/schema.sql is old: make schema'; exit 1; }
	@diff -u docs/openapi.yaml var/drift/openapi.yaml || { echo 'docs/openapi.yaml is old: make openapi'; exit 1; }

bench: install ## measure; the figures go to benchmarks/RESULTS.md
	@$(VENV) -m benchmarks

bench-accrual: install ## measure accrual runs; ARGUMENTS='--loans 1000000'; the figures go to benchmarks/RESULTS-accrual.md
	@$(VENV) -m benchmarks.accrual $(ARGUMENTS)

bench-limits: install ## measure what quotas cost, and whether a noisy tenant is felt; the figures go to benchmarks/RESULTS-limits.md by hand
	@$(TEMPORARY) -m benchmarks.limits

bench-proof: install ## measure account balances, roll-up and proofs; ARGUMENTS='--lines 200000 --seconds 4' for a smaller book
	@$(TEMPORARY) -m benchmarks.proof $(ARGUMENTS)

bench-webhooks: install ## measure webhooks; the figures go to benchmarks/RESULTS-webhooks.md
	@$(VENV) -m benchmarks.webhooks

rules: install ## write docs/posting-rules.md from tests/scenarios
	@$(VENV) -m tests.ledger.scenario_docs docs/posting-rules.md

requirements: install ## compile requirements*.in into requirements*.txt with hashes
	@for name in requirements requirements-dev; do \
		.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
			--custom-compile-command 'make requirements' $$name.in -o $$name.txt || exit; \
	done

clean: ## remove .venv and var (the demo's books too)
	@for link in var/*/elsewhere; do if [ -L "$$link" ]; then rm -rf "$$(readlink "$$link")"; fi; done
	rm -rf .venv var .mypy_cache .pytest_cache .ruff_cache
