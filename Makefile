# Every target works in a fresh clone: .venv is made on first use and brought up to date when
# pyproject.toml or constraints.txt change. PYTHON=... picks the interpreter.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: demo test quick check bench peers docs clean help

help:
	@echo "make demo               train and solve on embedded data, write runs/demo/report.html"
	@echo "make test               run the tests, with the time each room took (ARGS=... goes to pytest)"
	@echo "make quick              floors, doors and one case of each law, in less than a minute"
	@echo "make check              ruff, pyright, and the floors test"
	@echo "make bench              time dxdt against the peers that are installed (ARGS=... goes to dxdt bench)"
	@echo "make peers PEERS=DIR    run the peers' own test suites, in DIR, against dxdt.compat"
	@echo "make docs               build the documentation into site/"
	@echo "make clean              remove .venv, caches and built pages (runs/ stays)"

$(READY): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "dxdt needs Python 3.11 or newer and found none: install one, or name it with make PYTHON=/path/to/python3" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "$(PYTHON) is not a Python 3.11 or newer: name another one with make PYTHON=/path/to/python3" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$(PYTHON) cannot make virtual environments: install its venv package (python3-venv), or name another with make PYTHON=..." >&2; exit 1; fi
	@test -x $(BIN)/python || { echo "creating $(VENV) with $$("$(PYTHON)" --version)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing dxdt and its tools into $(VENV) (once; some minutes)"
	@$(PIP) install --quiet --no-input -c constraints.txt -e '.[lab,interop,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/dxdt demo $(ARGS)

# Files of tests on two processes; WORKERS=0 runs them in one, as a debugger wants it.
WORKERS ?= 2
test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

# One case of each law: the orders, gradients, isolation, events and executors of one method.
QUICK := tests/test_floors.py tests/test_door.py tests/test_docs.py tests/diffeq/test_orders.py \
	tests/diffeq/test_gradient_table.py tests/diffeq/test_isolation.py tests/diffeq/test_front_door.py
quick: $(READY)
	$(BIN)/python -m pytest -q $(QUICK) -k "Tsit5 or floors or door or docs or changelog or exported or front"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_floors.py

bench: $(READY)
	$(BIN)/dxdt bench $(ARGS)

peers: $(READY)
	$(BIN)/python tests/peers.py "$(PEERS)"

$(VENV)/.docs: $(READY)
	@$(PIP) install --quiet --no-input -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site dist build .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
