# `make demo` and `make test` set everything up by themselves; `make help` lists the rest.
#
#   PYTHON       the interpreter of the virtual environment, 3.11 or later
#   BENCH        options of `make bench`, for example calls --rounds 3
#   FAULTS       options of `make faults`, for example --only kill-3 --seed 7 --repeat 1
#   LOAD         options of `make load`, for example --jobs 20
#   SEEDS        lives that `make simulate` lives
#   TORCH_INDEX  address of a further package index, for example that of a smaller CPU build of torch; empty: pip's own

PYTHON ?= python3
TORCH_INDEX ?=
BENCH ?=
FAULTS ?=
LOAD ?= --results docs/results/load.json
SEEDS ?= 10000

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PACKAGES := protocol bus agents configs meetara starter textmodel

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test bench faults load simulate compose-test lint docs doctor clean distclean

help:
	@echo 'make demo       train a small model on the project'\''s own data and show it'
	@echo 'make test       all checks and tests'
	@echo 'make setup      only install: virtual environment, packages, Mosquitto, converter'
	@echo 'make bench      measure speed and memory against goals and peers, under ten minutes (docs/results/benchmarks.md)'
	@echo 'make faults     kill, cut, fill, lock, set back: the fault matrix, about half an hour (docs/faults.md)'
	@echo 'make compose-test  build the image, run the lab in containers, use it, hurt it, remove it (docs/compose.md)'
	@echo 'make load       two hundred requests at once, every one accounted for, about half an hour (docs/results/load.md)'
	@echo 'make simulate   the whole lab in virtual time, 10,000 lives with faults (docs/faults.md)'
	@echo 'make lint       ruff, mypy, import contracts, schema drift'
	@echo 'make docs       write the schemas, the topic reference and the AsyncAPI document again'
	@echo 'make doctor     check whether this machine can run a lab'
	@echo 'make clean      remove caches; make distclean: the virtual environment as well'
	@echo
	@echo 'Options: PYTHON=python3.12   TORCH_INDEX=<package index with a CPU build of torch>'
	@echo '         FAULTS="--only kill --seed 7 --repeat 1"   BENCH="calls --rounds 3"   SEEDS=1000'

setup: $(STAMPS)/converter

demo: setup
	@$(BIN)/meetara demo

# The checks run beside the tests, which wait half of their time; pytest's summary stays the last line of a good run.
test: setup
	@echo 'ruff, mypy, import contracts and schema drift run beside the tests; what they find is shown at the end'
	@{ $(CHECKS); } >$(VENV)/checks.log 2>&1 & checks=$$!; \
	$(BIN)/python -m pytest; tests=$$?; \
	wait $$checks || { cat $(VENV)/checks.log; exit 1; }; \
	exit $$tests

bench: setup $(STAMPS)/bench
	@$(BIN)/python -m benchmarks $(BENCH)

faults: setup
	@$(BIN)/python -m tests.faults $(FAULTS)

load: setup
	@$(BIN)/python -m tests.load $(LOAD)

# Where no engine answers, root with Debian's dockerd and debootstrap gets one for the time of the test; else it skips.
compose-test: setup
	@$(BIN)/python -m pytest -s -m compose tests/compose

simulate: setup
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS)

lint: setup
	@$(CHECKS)

docs: setup
	@$(BIN)/python -m protocol.schema docs/schemas
	@$(BIN)/python -m protocol.reference docs

doctor: setup
	@$(BIN)/meetara doctor

define CHECKS
$(BIN)/python -m ruff check . && \
$(BIN)/python -m mypy $(PACKAGES) && \
$(BIN)/lint-imports && \
$(BIN)/python -m protocol.schema docs/schemas --check && \
$(BIN)/python -m protocol.reference docs --check
endef

clean:
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

# Each step leaves a stamp and runs again when what it was made from has changed.

$(STAMPS)/venv: scripts/system.sh
	@sh scripts/system.sh '$(PYTHON)'
	@'$(PYTHON)' -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/packages: $(STAMPS)/venv pyproject.toml constraints.txt
	@echo 'installing packages (the first time this builds llama-cpp-python, which takes minutes)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') --editable '.[dev]'
	@touch $@

$(STAMPS)/bench: $(STAMPS)/packages
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		$(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') --editable '.[bench,bench-train]'
	@touch $@

$(STAMPS)/converter: $(STAMPS)/packages agents/gguf_factory/toolchain.py
	@$(BIN)/python -m agents.gguf_factory.toolchain check >/dev/null 2>&1 \
		|| $(BIN)/python -m agents.gguf_factory.toolchain install >/dev/null
	@touch $@
