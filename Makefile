# Every target works on a fresh clone: what is missing is installed first. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

PYTHON := .venv/bin/python
SERVICES := api sender reporter admin migrate simulator
NATIVE_IS_UP = [ -x $(PYTHON) ] && $(PYTHON) -m tools.native is-up

.PHONY: help
help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- starting and stopping ---------------------------------------------------------------------------------------

.PHONY: up
up:  ## Start everything: with Docker Compose where an engine answers, otherwise natively
	@if $(NATIVE_IS_UP); then $(MAKE) up-native; \
	elif tools/compose engine; then $(MAKE) up-docker; \
	else echo "No Docker engine answers: starting natively on this machine."; $(MAKE) up-native; fi

.PHONY: up-docker
up-docker:  ## Start everything with Docker Compose
	@tools/compose up

.PHONY: up-native
up-native: venv servers  ## Start everything as processes of this machine, on their own PostgreSQL and RabbitMQ
	@$(PYTHON) -m tools.native up

.PHONY: down
down:  ## Stop everything, keep the data
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m tools.native down; fi
	@tools/compose down
	@echo "Mailings does not run any more. Its data are kept; make clean removes them."

.PHONY: clean
clean:  ## Stop everything and remove the data
	@if [ -x $(PYTHON) ]; then $(PYTHON) -m tools.native clean; fi
	@tools/compose clean
	@echo "Mailings does not run any more, and its data are removed."

.PHONY: logs
logs:  ## Follow the logs
	@if tools/compose is-up; then tools/compose logs; else $(MAKE) venv && $(PYTHON) -m tools.native logs; fi

.PHONY: status
status:  ## Show what runs and where
	@if tools/compose is-up; then tools/compose status; else $(MAKE) venv && $(PYTHON) -m tools.native status; fi

.PHONY: demo
demo: venv  ## Import 10,000 clients into the running system and send them a mailing
	@$(PYTHON) -m tools.demo $(ARGS)

.PHONY: admin-user
admin-user:  ## Add a user of the admin pages or reset a password, ARGS="someone@example.com --role operator"
	@if tools/compose is-up; then tools/compose admin-user $(ARGS); \
	else $(MAKE) venv && $(PYTHON) -m tools.native admin-user $(ARGS); fi

.PHONY: report
report:  ## Mail the report of a day, ARGS="--day 2026-11-22 --to someone@example.com" (--dry-run prints its HTML)
	@if tools/compose is-up; then tools/compose report $(ARGS); \
	else $(MAKE) venv && $(PYTHON) -m tools.native report $(ARGS); fi

.PHONY: recount
recount:  ## Prove the counters of the running system against its messages
	@if tools/compose is-up; then tools/compose recount $(ARGS); \
	else $(MAKE) venv && $(PYTHON) -m tools.native recount $(ARGS); fi

# --- checking ----------------------------------------------------------------------------------------------------

# Each process of pytest has servers of its own and takes one file after another, the small ones last.
SIDE_BY_SIDE := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: test
test: lint types  ## Run the linter, the type checker and all tests
	@$(MAKE) servers browser
	$(PYTHON) -m pytest tests/unit tests/e2e tests/faults tests/integration -m "not faults" $(SIDE_BY_SIDE) $(ARGS)

.PHONY: test-fast
test-fast: venv  ## Run the tests that need no servers
	$(PYTHON) -m pytest tests/unit $(ARGS)

.PHONY: test-faults
test-faults: venv servers  ## Break real processes while they send, for some twenty minutes, and print the figures
	$(PYTHON) -m pytest tests/faults --timeout=1800 $(ARGS)

.PHONY: lint
lint: venv  ## Run the linter
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

.PHONY: types
types: venv  ## Run the type checker
	$(PYTHON) -m mypy .

.PHONY: format
format: venv  ## Format the code and mend what the linter can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

.PHONY: screenshots
screenshots: venv servers browser  ## Take pictures of every admin page into docs/images
	$(PYTHON) -m tools.screenshots

.PHONY: translate
translate: venv  ## Gather the admin UI's texts into the Russian catalogue and compile it
	.venv/bin/pybabel -q extract -F admin/babel.cfg -k _ -k _in:1c,2 -k lazy_gettext --no-location --sort-output \
	  --project Mailings --version 1 -o admin/translations/messages.pot admin
	.venv/bin/pybabel -q update --no-fuzzy-matching --ignore-obsolete -w 120 -l ru \
	  -i admin/translations/messages.pot -d admin/translations
	.venv/bin/pybabel -q compile -d admin/translations

# --- measuring ---------------------------------------------------------------------------------------------------

.PHONY: bench
bench: servers load  ## Measure speed beside references, for an hour or so; ARGS="throughput api --quick" for parts
	@tools/bootstrap clients
	$(PYTHON) -m bench $(ARGS)

.PHONY: profile
profile: venv servers load  ## Show where a message's time goes
	$(PYTHON) -m bench profile $(ARGS)

# --- dependencies ------------------------------------------------------------------------------------------------

.PHONY: venv
venv:
	@tools/bootstrap python

.PHONY: servers
servers:
	@tools/bootstrap servers

.PHONY: load
load:
	@tools/bootstrap load

.PHONY: browser
browser:
	@tools/bootstrap browser

# One resolution for all: the services may only have what the development set has.
LOCK := .venv/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command 'make lock'

.PHONY: lock
lock: venv  ## Resolve pyproject.toml into requirements/*.txt (ARGS=--upgrade for newer versions)
	$(LOCK) $(addprefix --extra ,dev $(SERVICES)) $(ARGS) -o requirements/dev.txt
	for extra in $(SERVICES) bench; do \
	  $(LOCK) --extra $$extra -c requirements/dev.txt -o requirements/$$extra.txt; \
	done
