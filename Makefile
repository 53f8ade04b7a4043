# Each target sets itself up: a virtual environment in .venv, uv in it, and the exact packages of locks/.
PYTHON ?= python3
UV     := .venv/bin/uv
RUN    := .venv/bin/python
READY  := .venv/.ready
PYTEST ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast bench bench-batch bench-client bench-fairness bench-films bench-gateway drill lint lock demo-checkpoint fuzz clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY)  ## make .venv (the first time: about 6 GB of packages)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pedcxr needs Python 3.11 or newer: make PYTHON=...")'
	@echo "setting up .venv (about 6 GB of packages the first time)"
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# Compiled here, once: three processes of vLLM import torch at every start, and where PYTHONDONTWRITEBYTECODE is set each of
# them would compile it anew.
$(READY): $(UV) pyproject.toml locks/cpu.txt locks/dev.txt
	@$(UV) pip sync --python $(RUN) --require-hashes --compile-bytecode locks/cpu.txt locks/dev.txt
	@$(UV) pip install --python $(RUN) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## real vLLM writes reports of three films
	@.venv/bin/pedcxr-serve demo

test: $(READY)  ## every test; the long ones run real vLLM
	@$(RUN) -m pytest $(PYTEST)

test-fast: $(READY)  ## the tests that need no vLLM, in under three minutes
	@$(RUN) -m pytest -m 'not slow' $(PYTEST)

bench: $(READY)  ## reports a second: the gateway, bare vLLM, transformers
	@$(RUN) -m tests.benchmarks.throughput

bench-fairness: $(READY)  ## how two teams share a real engine, and the wait of a light one under a flood
	@$(RUN) -m tests.benchmarks.fairness

bench-films: $(READY)  ## milliseconds from a DICOM to wire bytes, and from the naive path
	@$(RUN) -m tests.benchmarks.films

bench-batch: $(READY)  ## memory of `pedcxr batch` up to 100,000 films
	@$(RUN) -m tests.benchmarks.batch_memory

bench-client: $(READY)  ## CPU a request of the client, and of the plain SDK
	@$(RUN) -m tests.benchmarks.client_cpu

bench-gateway: $(READY)  ## what the gateway itself costs, in front of an engine that answers at once
	@$(RUN) -m tests.benchmarks.gateway

drill: $(READY)  ## kill the engine under load ten times (about 10 minutes)
	@$(RUN) -m tests.benchmarks.kill_drill

lint: $(READY)  ## ruff and mypy --strict
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

COMPILE := $(UV) pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url \
           --custom-compile-command 'make lock'
lock: $(UV)  ## renew locks/ (add UPGRADE=--upgrade for newer versions)
	@$(COMPILE) $(UPGRADE) --override locks/cpu-overrides.txt --extra cpu pyproject.toml -o locks/cpu.txt
	@$(COMPILE) $(UPGRADE) -c locks/cpu.txt --override locks/dev-overrides.txt locks/dev.in -o locks/dev.txt
	@$(COMPILE) $(UPGRADE) --extra gpu pyproject.toml -o locks/gpu.txt

demo-checkpoint: $(READY)  ## train the demo checkpoint anew (less than an hour on 2 cores)
	@$(RUN) -m demo_training.train --out serve/pedcxr_serve/demo/checkpoint

MINUTES ?= 10
fuzz: $(READY)  ## damaged films for MINUTES=10, in a child of 1 GiB: no crash, no hang
	@$(RUN) -m tests.benchmarks.film_fuzz --minutes $(MINUTES)

clean:  ## remove .venv and caches
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache dist build
