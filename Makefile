# Each target sets up what it needs: it creates its own virtual environment, and as root on Debian it installs the programs
# that it calls. PYTHON=python3.13 chooses another interpreter.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
KERNELS ?= 5.10 6.1
MACHINES ?= arm64 s390x
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
PYTHON_HEADERS = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
# setuptools warns at each editable installation.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check --quiet

# The sources of the C extension: when they change, the packages are installed again.
NATIVE := setup.py $(wildcard native/*.[ch])

.PHONY: demo test test-fast test-kernels test-machines test-systemd coverage lint lint-ruff lint-mypy lint-words lint-shell docs \
	bench figures sanitize fuzz soak mutants dist clean help

help:
	@echo 'make demo           an echo responder in a namespace of its own, pinged over IPv4 and IPv6'
	@echo 'make test           all tests, on asyncio and uvloop'
	@echo 'make test-fast      the tests that need no kernel, without the slow ones: a quick look that needs no root'
	@echo 'make test-kernels   all tests on other kernels of Debian: KERNELS="5.10 6.1" by default, also 6.12'
	@echo 'make test-machines  the tests without the kernel on other processors: MACHINES="arm64 s390x" by default'
	@echo 'make test-systemd   the systemd service of the documentation, under a systemd that boots in a container'
	@echo 'make coverage       all tests, and which lines of the package they run'
	@echo 'make lint           ruff, mypy, pyright, codespell, shellcheck, and the schemas of the workflows'
	@echo 'make docs           the documentation as HTML in docs/_build'
	@echo 'make bench          measures all figures and writes them to README, pages and charts; ARGS=--help: how to choose some'
	@echo 'make figures        writes them again from benchmarks/results.json, without measuring'
	@echo 'make sanitize       the C extension under sanitizers, and on other processors'
	@echo 'make fuzz           generated input for the C sources and every parser, compared with the kernel: ARGS="SECONDS CASES"'
	@echo 'make soak           random sequences of operations and faults, by seed: ARGS="--seconds 600"; ARGS=--help'
	@echo 'make mutants        checks that each part of the conformance checks is needed'
	@echo 'make dist           the distributions, checked and tried, in dist; PYTHONS="..." names more interpreters to try them with'
	@echo 'make clean          removes what the others made in this folder'

demo: $(VENV)/.demo
	@sh examples/demo.sh $(BIN)/python

test: $(VENV)/.test
	@sh tests/run.sh $(BIN)/python $(ARGS)

test-fast: $(VENV)/.test
	@AIOTUNTAP_TEST_KERNEL=0 $(BIN)/python -m pytest -q -n auto -m 'not (alone or hypothesis or slow)' --ignore=tests/kernel $(ARGS)

test-kernels: $(VENV)/.test
	@sh tests/machines/run.sh kernels $(BIN)/python '$(KERNELS)' $(ARGS)

test-machines: $(VENV)/.test
	@sh tests/machines/run.sh machines $(BIN)/python '$(MACHINES)' $(ARGS)

test-systemd: $(VENV)/.test
	@sh tests/machines/systemd.sh $(BIN)/python

# Of this process and the workers: what tests start as programs of their own is not counted.
coverage: $(VENV)/.coverage
	@mkdir -p build && rm -f build/coverage*
	@PYTEST_ADDOPTS='--cov --cov-append --cov-report=' sh tests/run.sh $(BIN)/python $(ARGS)
	@$(BIN)/coverage report

lint: lint-ruff lint-mypy lint-words lint-shell
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

lint-ruff: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-mypy: $(VENV)/.lint
	$(BIN)/mypy
	$(BIN)/python -m tests.pages.types
	@cd docs && PYTHONPATH=.. ../$(BIN)/pyright --pythonpath ../$(BIN)/python --verifytypes aiotuntap --ignoreexternal

lint-words: $(VENV)/.lint
	$(BIN)/codespell

lint-shell: $(VENV)/.lint
	$(BIN)/shellcheck .ci/run examples/wireguard/wireguard-aiotuntap examples/*.sh tests/*.sh tests/*/*.sh

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build
	@echo 'docs/_build/index.html'

bench: $(VENV)/.bench
	@sh tests/install-programs.sh gcc:build-essential ip:iproute2 ping:iputils-ping iperf3 vde_switch:vde2 \
		wg:wireguard-tools wireguard-go
	$(BIN)/python -m benchmarks $(ARGS)

figures: $(VENV)/.bench
	@$(BIN)/python -m benchmarks.figures

sanitize: $(VENV)/.test
	@sh tests/native/sanitize.sh $(BIN)/python $(ARGS)

fuzz: $(VENV)/.test
	@sh tests/fuzz/run.sh $(BIN)/python $(ARGS)

soak: $(VENV)/.test
	@sh tests/install-programs.sh ip:iproute2
	@$(BIN)/python -m tests.soak $(ARGS)

mutants: $(VENV)/.test
	@$(BIN)/python -W ignore -m tests.mutants $(ARGS)

dist: $(VENV)/.dist
	@sh tests/dist.sh $(BIN)/python $(PYTHONS)

clean:
	rm -rf .venv build dist aiotuntap/_native*.so docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis

# -- one stamp for each set of packages --------------------------------------------------------------------------------

$(VENV)/bin/python:
	@echo '== making a virtual environment for Python $(VERSION) in $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { echo 'no venv module: apt-get install python3-venv'; exit 1; }
	@$(PIP) install --upgrade pip

# Without a compiler, only the slower engine in Python is installed.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml $(NATIVE)
	@echo '== installing aiotuntap and uvloop'
	@$(PIP) install --editable '.[uvloop]'
	@$(BIN)/python -c 'import aiotuntap._native' 2>/dev/null || echo '== no C extension: aiotuntap runs with its slower engine in Python'
	@touch $@

$(VENV)/.test $(VENV)/.coverage $(VENV)/.lint $(VENV)/.docs $(VENV)/.bench: $(VENV)/.%: $(VENV)/bin/python pyproject.toml $(NATIVE)
	@echo '== installing aiotuntap and what "make $*" needs'
	@$(PIP) install --editable '.[all]' --group $*
	@$(BIN)/python -c 'import aiotuntap._native' 2>/dev/null || echo '== NO C EXTENSION: ONLY THE ENGINE IN PYTHON IS INSTALLED'
	@touch $@

$(VENV)/.test $(VENV)/.coverage $(VENV)/.bench: | $(VENV)/.compiler

$(VENV)/.compiler: $(VENV)/bin/python
	@sh tests/install-programs.sh cc:build-essential $(PYTHON_HEADERS):python3-dev && touch $@ || echo '== continuing without a compiler'

$(VENV)/.dist: $(VENV)/bin/python pyproject.toml
	@echo '== installing what "make dist" needs'
	@$(PIP) install --group dist
	@touch $@
