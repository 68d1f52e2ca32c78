# Each target is all that a new machine needs: it makes its own virtual environment, and as root on Debian it installs
# the programs it calls. PYTHON=python3.13 chooses another interpreter.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
KERNELS ?= 5.10 6.1
MACHINES ?= arm64 s390x
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
PYTHON_HEADERS = $(shell $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
# setuptools warns at each editable installation.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip --disable-pip-version-check --quiet

# What the C extension is made of: when it changes, the packages are installed again.
NATIVE := setup.py $(wildcard native/*.[ch])

.PHONY: demo test test-kernels test-machines test-systemd lint docs bench sanitize fuzz soak mutants wheel clean help

help:
	@echo 'make demo    an echo responder in a namespace of its own, pinged over IPv4 and IPv6'
	@echo 'make test    all tests, on asyncio and uvloop'
	@echo 'make test-kernels    all tests on other kernels of Debian: KERNELS="5.10 6.1" unless you say, also 6.12'
	@echo 'make test-machines   the tests of pure code on other processors: MACHINES="arm64 s390x" unless you say'
	@echo 'make test-systemd    the systemd service of the documentation, under a systemd that boots in a container'
	@echo 'make lint    ruff, mypy, codespell'
	@echo 'make docs    the documentation as HTML in docs/_build'
	@echo 'make bench   the figures in the README; make bench ARGS=--help lists the benchmarks and how to choose'
	@echo 'make sanitize  the C extension under sanitizers, and on other processors'
	@echo 'make fuzz    generated input for the C sources, every parser, and against the kernel: ARGS="SECONDS CASES"'
	@echo 'make soak    random interleavings of everything that can happen, by seed: ARGS="--seconds 600"; ARGS=--help'
	@echo 'make mutants whether every line of the conformance checks is needed'
	@echo 'make wheel   the distributions, checked and tried, in dist'

demo: $(VENV)/.demo
	@sh examples/demo.sh $(BIN)/python

test: $(VENV)/.test
	@sh tests/run.sh $(BIN)/python $(ARGS)

test-kernels: $(VENV)/.test
	@sh tests/machines/run.sh kernels $(BIN)/python '$(KERNELS)' $(ARGS)

test-machines: $(VENV)/.test
	@sh tests/machines/run.sh machines $(BIN)/python '$(MACHINES)' $(ARGS)

test-systemd: $(VENV)/.test
	@sh tests/machines/systemd.sh $(BIN)/python

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build
	@echo 'docs/_build/index.html'

bench: $(VENV)/.bench
	@sh tests/install-programs.sh gcc:build-essential ip:iproute2 ping:iputils-ping iperf3 vde_switch:vde2 \
		wg:wireguard-tools wireguard-go
	$(BIN)/python -m benchmarks $(ARGS)

sanitize: $(VENV)/.test
	@sh tests/native/sanitize.sh $(BIN)/python $(ARGS)

fuzz: $(VENV)/.test
	@sh tests/fuzz/run.sh $(BIN)/python $(ARGS)

soak: $(VENV)/.test
	@sh tests/install-programs.sh ip:iproute2
	@$(BIN)/python -m tests.soak $(ARGS)

mutants: $(VENV)/.test
	@$(BIN)/python -W ignore -m tests.mutants $(ARGS)

# The wheel is one for all versions: it is tried with those that are named in PYTHONS, too.
wheel: $(VENV)/.wheel
	@sh tests/native/wheel.sh $(BIN)/python $(PYTHONS)

clean:
	rm -rf .venv build dist aiotuntap/_native*.so docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis

# -- one stamp for each set of packages --------------------------------------------------------------------------------

$(VENV)/bin/python:
	@echo '== making a virtual environment for Python $(VERSION) in $(VENV)'
	@$(PYTHON) -m venv $(VENV) || { echo 'no venv module: apt-get install python3-venv'; exit 1; }
	@$(PIP) install --upgrade pip

# Without a compiler, the engine in Python is installed, which is slower.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml $(NATIVE)
	@echo '== installing aiotuntap and uvloop'
	@$(PIP) install --editable '.[uvloop]'
	@$(BIN)/python -c 'import aiotuntap._native' 2>/dev/null || echo '== no C extension: aiotuntap runs with its slower engine in Python'
	@touch $@

$(VENV)/.test $(VENV)/.lint $(VENV)/.docs $(VENV)/.bench: $(VENV)/.%: $(VENV)/bin/python pyproject.toml $(NATIVE)
	@echo '== installing aiotuntap and what "make $*" needs'
	@$(PIP) install --editable '.[all]' --group $*
	@$(BIN)/python -c 'import aiotuntap._native' 2>/dev/null || echo '== NO C EXTENSION: ONLY THE ENGINE IN PYTHON IS INSTALLED'
	@touch $@

$(VENV)/.test $(VENV)/.bench: | $(VENV)/.compiler

$(VENV)/.compiler: $(VENV)/bin/python
	@sh tests/install-programs.sh cc:build-essential $(PYTHON_HEADERS):python3-dev && touch $@ || echo '== continuing without a compiler'

$(VENV)/.wheel: $(VENV)/bin/python pyproject.toml
	@echo '== installing what "make wheel" needs'
	@$(PIP) install --group wheel
	@touch $@
