# Each target creates what it needs: a virtual environment in .venv with uv and the exact packages of locks/.
PYTHON ?= python3
UV     := .venv/bin/uv
RUN    := .venv/bin/python
READY  := .venv/.ready
CLIENTS := .venv/clients/.ready
TESTERS := .venv/loadtest/.ready
DEPLOYTOOLS := .venv/deploytools/.ready
TRAIN  := .venv/train/.ready
GPU    := .venv/gpu/.ready
GUIDELLM := .venv/guidellm/.ready
PYTEST ?=
WORKERS ?= 3
# Many tests wait rather than compute, so more processes than cores are faster. The tests of a file share its servers.
FAST   := -m 'not slow' -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-fast test-wheel test-pythons coverage docs pictures sbom audit drill-fleet bench bench-overhead bench-batch bench-capacity bench-client bench-fairness bench-films bench-gateway bench-gpu bench-lexicon drill drill-adapters loadtest lint lock demo-checkpoint demo-finetune fuzz clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(READY)  ## create .venv (first run: about 6 GB of packages)

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pedcxr needs Python 3.11 or newer: make PYTHON=...")'
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# Bytecode is compiled here once: three processes of vLLM import torch at every start, and each would compile it again where
# PYTHONDONTWRITEBYTECODE is set.
$(READY): $(UV) pyproject.toml locks/cpu.txt locks/dev.txt locks/testdata.txt
	@echo "installing locks/ into .venv (first run: about 6 GB of packages)"
	@$(UV) pip sync --python $(RUN) --require-hashes --compile-bytecode locks/cpu.txt locks/dev.txt locks/testdata.txt
	@$(UV) pip install --python $(RUN) --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(READY)  ## start vLLM on the demo checkpoint and write reports of three films
	@.venv/bin/pedcxr-serve demo

# PYTEST may select tests of one kind only; pytest then exits with 5 for the other.
NONE_OK = $(if $(PYTEST),|| [ $$? -eq 5 ])
test: test-fast $(CLIENTS) $(TRAIN)  ## run every test, real vLLM included
	@$(MAKE) --quiet $(TESTERS) || echo "the load testers cannot be installed; their tests are skipped"
	@$(RUN) -m pytest -m slow $(PYTEST) $(NONE_OK)

test-fast: $(READY) $(DEPLOYTOOLS)  ## run the tests that need no vLLM
	@$(RUN) -m pytest $(FAST) $(PYTEST) $(NONE_OK)

test-wheel: $(READY)  ## run the tests that need no vLLM on the built wheel
	@$(RUN) -m tests.support.installed_wheel suite

test-pythons: $(READY)  ## run the client's tests on Python 3.12 and 3.13, where installed
	@$(RUN) -m tests.support.installed_wheel interpreters

COVERAGE_FLOOR ?= 90
coverage: $(READY)  ## line coverage of the tests that need no vLLM, with a floor
	@$(RUN) -m pytest $(FAST) --cov=client/pedcxr_client --cov=serve/pedcxr_serve --cov-report=term:skip-covered \
	    --cov-fail-under=$(COVERAGE_FLOOR) $(PYTEST)

# The site has an environment of its own inside .venv, so that it shares no package with the product and its tests.
DOCS := .venv/docs/.ready
$(DOCS): $(UV) locks/docs.txt
	@$(PYTHON) -m venv .venv/docs
	@$(UV) pip sync --quiet --python .venv/docs/bin/python --require-hashes locks/docs.txt
	@touch $@

docs: $(DOCS)  ## build the documentation into site/; warnings are errors
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs --quiet build --strict

# Other clients, load testers and the tools that check deploy/ have environments of their own too: they ask for other versions of
# openai and pydantic, or share nothing with the product.
$(CLIENTS) $(TESTERS) $(GUIDELLM) $(DEPLOYTOOLS): .venv/%/.ready: $(UV) locks/%.txt
	@$(PYTHON) -m venv .venv/$*
	@$(UV) pip sync --quiet --python .venv/$*/bin/python --require-hashes --compile-bytecode locks/$*.txt
	@touch $@

# Fine-tuning needs no vLLM, and vLLM none of its packages. The vLLM of a GPU replaces that of a CPU. Virtual environments of their
# own hold pedcxr beside them.
$(TRAIN) $(GPU): .venv/%/.ready: $(UV) pyproject.toml locks/%.txt
	@$(PYTHON) -m venv .venv/$*
	@$(UV) pip sync --quiet --python .venv/$*/bin/python --require-hashes locks/$*.txt
	@$(UV) pip install --python .venv/$*/bin/python --quiet --no-deps --build-constraint locks/dev.txt --editable .
	@touch $@

demo-finetune: $(READY) $(TRAIN)  ## teach the demo checkpoint another wording, merge and serve it
	@$(RUN) -m tests.drills.finetune_demo

bench: $(READY)  ## reports per second with a mid-size checkpoint: transformers, vllm serve, pedcxr (over half an hour)
	@$(RUN) -m tests.benchmarks.throughput

bench-overhead: $(READY)  ## what the server adds to bare vLLM, with the demo checkpoint: rate, first token, start, CPU
	@$(RUN) -m tests.benchmarks.throughput.overhead
	@$(RUN) -m tests.benchmarks.throughput.event_cost
	@$(RUN) -m tests.benchmarks.throughput.film_preparation

bench-capacity: $(READY)  ## accuracy of the simulated replica of `pedcxr-serve plan` on real vLLM
	@$(RUN) -m pytest -s -m slow tests/e2e/requests/capacity_accuracy.py

bench-fairness: $(READY)  ## shares of two tenants on real vLLM, and the wait of a light tenant under a flood
	@$(RUN) -m tests.benchmarks.fairness
	@$(RUN) -m tests.benchmarks.throughput.from_outside

bench-films: $(READY)  ## milliseconds from DICOM to request body, beside a naive implementation
	@$(RUN) -m tests.benchmarks.films

bench-batch: $(READY)  ## memory of `pedcxr batch` with up to 100,000 films
	@$(RUN) -m tests.benchmarks.batch_memory

bench-client: $(READY)  ## CPU time per request: the client and the plain SDK
	@$(RUN) -m tests.benchmarks.client_cpu

bench-gateway: $(READY)  ## cost of the gateway, with an engine that responds at once
	@$(RUN) -m tests.benchmarks.gateway

GPU_RESULTS ?= build/gpu
bench-gpu: $(GPU)  ## on a GPU: fidelity, and reports per second of the published shape: transformers, vllm serve, pedcxr
	@.venv/gpu/bin/python -W ignore -m tests.benchmarks.gpu -o $(GPU_RESULTS) $(PARTS)

bench-lexicon: $(READY)  ## accuracy of the lexicon of `pedcxr eval` on real reports
	@$(RUN) -m tests.client.evaluation.lexicon_accuracy

drill: $(READY)  ## kill the engine ten times, replace gateways, engine and replicas, overload, soak (about an hour)
	@$(RUN) -m tests.drills.kill_engine
	@$(RUN) -m tests.drills.rolling_restart
	@$(RUN) -m tests.drills.fleet.real_engines
	@$(RUN) -m tests.drills.overload

drill-adapters: $(READY)  ## cost of adapters: start-up, tokens per second, equal reports in a mixed batch
	@$(RUN) -m tests.drills.adapters

drill-fleet: $(READY)  ## restart and cut off replicas with fake engines, and measure 1 to 8 of them (about 5 minutes)
	@$(RUN) -m tests.drills.fleet.drills

pictures: $(READY)  ## draw docs/fleet/*.svg: the dashboards' queries on a real Prometheus (15 minutes, with real vLLM at the end)
	@$(RUN) -m tests.drills.fleet.pictures

SBOM ?= build/sbom
sbom: $(READY) $(DEPLOYTOOLS)  ## build/sbom/: CycloneDX of the installed packages with licences, and of each lock
	@mkdir -p $(SBOM)
	@.venv/deploytools/bin/cyclonedx-py environment .venv --pyproject pyproject.toml --output-reproducible -o $(SBOM)/environment.json
	@for lock in cpu gpu; do PYTHONWARNINGS=ignore .venv/deploytools/bin/cyclonedx-py requirements locks/$$lock.txt \
	    --pyproject pyproject.toml --output-reproducible -o $(SBOM)/$$lock.json || exit; done
	@ls -s -h $(SBOM)

# pip-audit exits with 0 when a database knows none of the packages, as the JSON API of a mirror may. A release with a published
# vulnerability shows first that the database answers.
LOCKS ?= cpu gpu gpu-image train
DATABASE ?= --vulnerability-service pypi
PIP_AUDIT := .venv/deploytools/bin/pip-audit --strict --disable-pip --progress-spinner off
audit: $(DEPLOYTOOLS)  ## look for known vulnerabilities of the packages in locks/ (needs the JSON API of PyPI)
	@echo 'jinja2==2.10' | $(PIP_AUDIT) $(DATABASE) --no-deps -r /dev/stdin 2>&1 | grep -qE 'CVE-|GHSA-|PYSEC-' || { \
	    echo 'audit: no vulnerability database in reach: nothing was checked. The default is the JSON API of PyPI,' >&2; \
	    echo 'which many mirrors lack. Run `make audit` where it answers, or use OSV: make audit DATABASE="-s osv"' >&2; exit 2; }
	@failed=; for lock in $(LOCKS); do echo "locks/$$lock.txt"; $(PIP_AUDIT) $(DATABASE) --require-hashes -r locks/$$lock.txt || failed=1; done; [ -z "$$failed" ]

loadtest: $(READY) $(TESTERS) $(GUIDELLM)  ## short runs of guidellm, aiperf, locust and vllm bench at the gateway (6 GB of packages more)
	@$(RUN) -m tests.drills.load_testers

lint: $(READY)  ## ruff and mypy --strict
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

COMPILE := $(UV) pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url \
           --custom-compile-command 'make lock'
lock: $(UV)  ## compile locks/ (add UPGRADE=--upgrade for newer versions)
	@$(COMPILE) $(UPGRADE) --override locks/cpu-overrides.txt --extra cpu --extra redis pyproject.toml -o locks/cpu.txt
	@$(COMPILE) $(UPGRADE) -c locks/cpu.txt --override locks/dev-overrides.txt locks/dev.in -o locks/dev.txt
	@$(COMPILE) $(UPGRADE) -c locks/dev.txt locks/docs.in -o locks/docs.txt
	@$(COMPILE) $(UPGRADE) locks/clients.in -o locks/clients.txt
	@$(COMPILE) $(UPGRADE) locks/loadtest.in -o locks/loadtest.txt
	@$(COMPILE) $(UPGRADE) locks/deploytools.in -o locks/deploytools.txt
	@$(COMPILE) $(UPGRADE) locks/guidellm.in -o locks/guidellm.txt
	@$(COMPILE) $(UPGRADE) -c locks/cpu.txt -c locks/dev.txt --extra train pyproject.toml locks/train.in -o locks/train.txt
	@$(COMPILE) $(UPGRADE) --extra gpu --extra redis pyproject.toml -o locks/gpu.txt
	@$(COMPILE) -c locks/gpu.txt --extra dicom --extra redis --extra serve pyproject.toml -o locks/gpu-image.txt

demo-checkpoint: $(READY)  ## train the demo checkpoint (less than an hour on 2 cores)
	@$(RUN) -m demo_training.train --out serve/pedcxr_serve/demo/checkpoint

MINUTES ?= 10
fuzz: $(READY)  ## 5,000 generated conversations; damaged films for MINUTES=10 in a child process of 1 GiB
	@EXAMPLES=5000 $(RUN) -m pytest -q -n0 tests/serve/gateway/request/test_conversation.py -k generated
	@$(RUN) -m tests.drills.film_fuzz --minutes $(MINUTES)

clean:  ## remove the environments, caches and build outputs
	@rm -rf .venv site .coverage .mypy_cache .ruff_cache .pytest_cache dist build
