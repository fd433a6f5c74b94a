# What a user and a developer need, on a fresh Debian machine with Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
REDIS := $(VENV)/.redis
POSTGRESQL := $(VENV)/.postgresql
PEERS := $(VENV)/.peers
PROXIES := $(VENV)/.all-proxies
PROMETHEUS := $(VENV)/.prometheus
BROWSER := $(VENV)/.chromium
COMPILER := $(VENV)/.compiler
LANGUAGES := $(VENV)/.languages
# Each process of a farm would compile all of coatcheck anew.
unexport PYTHONDONTWRITEBYTECODE
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -n")
# A fresh machine knows no package yet: then its lists are fetched, once for all that is installed after that.
# RUNLEVEL=1: no server is started.
INSTALL := $(SUDO) env RUNLEVEL=1 apt-get install -q -y
installed = { $(INSTALL) $(1) || { $(SUDO) apt-get update -q && $(INSTALL) $(1); }; } >/dev/null 2>&1

.PHONY: demo test device-test bench docs simulate mutants network-test oldest reference wrap lint setup

## Start a farm with the demo shop; Ctrl-C stops it.
demo: $(READY)
	@exec $(BIN)/coatcheck demo

## Everything that must hold before a change lands.
test: $(READY) $(REDIS) $(POSTGRESQL) $(PROXIES) $(PROMETHEUS) $(BROWSER) $(COMPILER) $(LANGUAGES) lint
	$(BIN)/python -m pytest -n 6 --dist loadscope --no-loadscope-reorder -m "not serial and not apart"  # six on two cores: most wait
	$(BIN)/python -m pytest -m serial tests/farm

## Plants each fault of tests/mutants in a copy of the source: its named test must notice. ONLY=name for some of them.
mutants: $(READY) $(REDIS) $(POSTGRESQL) $(PROXIES) $(PROMETHEUS) $(BROWSER) $(LANGUAGES)
	@PYTHONPATH=tests $(BIN)/python -m mutants $(ONLY)

## Sessions that are bound to a real browser's key. No part of `make test` yet: two runs of six fail by their timing.
device-test: $(READY) $(BROWSER)
	$(BIN)/python -m pytest -m apart tests/farm

## Two farms, three Redis, forty browsers, and links that are cut at random: MINUTES=60 SEED=n.
network-test: $(READY) $(REDIS)
	@PYTHONPATH=tests $(BIN)/python -m network --minutes $(or $(MINUTES),5) --seed $(or $(SEED),0)

## The adapters of web frameworks with the oldest version of each that we support. ONLY=litestar for one of them.
oldest: $(READY) $(REDIS)
	@PYTHONPATH=tests $(BIN)/python -m oldest $(ONLY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## docs/commands.md anew, of the commands themselves.
reference: $(READY)
	PYTHONPATH=tests $(BIN)/python -m commands.reference

## The documentation as a site, with search, in build/docs. What links to nothing fails.
docs: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --group docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -b html -c docs/site -d build/doctrees . build/docs
	@echo "open build/docs/index.html"

## Breaks the lines of prose in the documentation at 120 characters; what is read stays the same.
wrap: $(READY)
	PYTHONPATH=tests $(BIN)/python -m wrapping

## benchmarks/RESULTS.md anew.
bench: $(READY) $(REDIS) $(POSTGRESQL) $(PROXIES) $(PEERS)
	$(BIN)/pip install --quiet --disable-pip-version-check --group bench
	$(BIN)/python -m benchmarks

## A thousand seeded histories; SEEDS=n for more.
simulate: $(READY)
	$(BIN)/coatcheck simulate --seeds $(or $(SEEDS),1000)

setup: $(READY)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: Python 3.11 or newer is needed; name it with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "installing python3-venv"; \
		$(call installed,python3-venv) || \
		{ echo "make: python3-venv is missing; install it with: apt-get install python3-venv" >&2; exit 1; }; }
	$(PYTHON) -m venv $(VENV)

# pip 25.1 was the first to know dependency groups.
$(READY): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[all]" --group dev
	@touch $@

$(REDIS): | $(BIN)/python
	@command -v redis-server >/dev/null || { \
		echo "installing redis-server"; \
		$(call installed,redis-server) || \
		{ echo "make: redis-server is missing; install it with: apt-get install redis-server" >&2; exit 1; }; }
	@touch $@

$(POSTGRESQL): | $(BIN)/python
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
		echo "installing postgresql"; \
		$(call installed,postgresql) || \
		{ echo "make: postgresql is missing; install it with: apt-get install postgresql" >&2; exit 1; }; }
	@touch $@

# For the test of the compiled build (docs/compiling.md).
$(COMPILER): | $(BIN)/python
	@{ command -v cc && $(BIN)/python -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'; } \
		>/dev/null 2>&1 || { \
		echo "installing gcc and python3-dev"; \
		$(call installed,gcc libc6-dev python3-dev) || \
		{ echo "make: a C compiler is missing; install it with: apt-get install gcc libc6-dev python3-dev" >&2; exit 1; }; }
	@touch $@

# Proxies that get the farm's ticket keys; peers of the benchmarks, too. Debian has them where only root looks.
$(PROXIES): | $(BIN)/python
	@{ PATH="$$PATH:/usr/sbin"; command -v haproxy && command -v nginx && command -v caddy; } >/dev/null || { \
		echo "installing haproxy, nginx and caddy"; \
		$(call installed,haproxy nginx-light caddy) || \
		{ echo "make: install these with: apt-get install haproxy nginx-light caddy" >&2; exit 1; }; }
	@touch $@

# Asks a farm for its metrics, and judges the rules and the dashboard in deploy/. What it recommends watches the machine.
$(PROMETHEUS): | $(BIN)/python
	@{ command -v prometheus && command -v promtool; } >/dev/null || { \
		echo "installing prometheus"; \
		$(call installed,--no-install-recommends prometheus) || \
		{ echo "make: prometheus is missing; install it with: apt-get install prometheus" >&2; exit 1; }; }
	@touch $@

# A real client of the tests of TLS, and the whole browser, which alone binds sessions to its key. What they recommend,
# for desktops, is three times as much, and not needed.
$(BROWSER): | $(BIN)/python
	@{ command -v chromium-headless-shell && command -v chromium; } >/dev/null || { \
		echo "installing chromium and chromium-headless-shell"; \
		$(call installed,--no-install-recommends chromium chromium-headless-shell) || \
		{ echo "make: install them with: apt-get install chromium chromium-headless-shell" >&2; exit 1; }; }
	@touch $@

# The other languages whose servers ask the session service (examples/session_service); Node also runs the verifier of docs/spec.
$(LANGUAGES): | $(BIN)/python
	@{ command -v node && command -v php; } >/dev/null || { \
		echo "installing nodejs and php-cli"; \
		$(call installed,--no-install-recommends nodejs php-cli) || \
		{ echo "make: install these with: apt-get install nodejs php-cli" >&2; exit 1; }; }
	@touch $@

# A further peer of the benchmarks.
$(PEERS): | $(BIN)/python
	@command -v wrk >/dev/null || { \
		echo "installing wrk"; \
		$(call installed,wrk) || \
		{ echo "make: install it with: apt-get install wrk" >&2; exit 1; }; }
	@touch $@
