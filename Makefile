# Every command sets up what it needs first. `make` lists them.

PYTHON ?= python3
VENV ?= .venv
ENGINE_VENV ?= .venv-vllm
DOCS_VENV ?= .venv-docs
# Handed on to the command behind a target: make test ARGS="-k drain", make demo ARGS="--jobs 50".
ARGS ?=

# Processes that share the tests: they wait most of the time. 0 is for -s and the debugger.
TEST_JOBS ?= 6
# The same for those of an engine, which keep a core busy each: vLLM and two models take about 5 GB in each process.
ENGINE_JOBS ?= 0

# What a command starts, hundreds of processes in the tests, shall not compile everything again.
export PYTHONDONTWRITEBYTECODE :=

SEED ?=
MINUTES ?= 10

PACKAGES = schemas wire producer exporter worker gateway agents cli local testing

.DEFAULT_GOAL := help
.PHONY: help demo demo-llm test test-matrix mutate test-engine chaos explore check bench bench-engine bench-first-token bench-gateway bench-peers docs build clean venv bench-venv docs-venv engine-venv services

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  PYTHON=python3.12 VENV=.venv-3.12 take another Python; ARGS="…" goes to the command itself.'

demo: ## Run a whole fleet on this machine and watch it work
	@scripts/setup-venv $(VENV) $(PYTHON) '.[local,worker]'
	@scripts/setup-services $(VENV)
	@$(VENV)/bin/inferfleet demo $(ARGS)

demo-llm: engine-venv ## The same with a real language model, on the CPU
	@scripts/setup-services $(ENGINE_VENV)
	@scripts/demo-llm $(ENGINE_VENV) $(ARGS)

test: venv services ## Run all tests but those that need vLLM
	$(if $(ARGS),,@echo 'The whole suite takes about 16 minutes on two cores that have nothing else to do.')
	@$(VENV)/bin/pytest --ignore=tests/engine -n $(TEST_JOBS) --dist loadgroup --no-loadscope-reorder $(ARGS)

test-matrix: venv services ## Run the tests of broker behaviour on each RabbitMQ with each type of queue
	@scripts/test-matrix $(VENV) $(ARGS)

mutate: venv services ## See that each test that injects a fault fails where the fault does not happen
	@scripts/mutate $(VENV) $(ARGS)

test-engine: engine-venv ## Run the tests of the vLLM engine, on the CPU
	@scripts/setup-demo-model $(ENGINE_VENV) >/dev/null
	@$(ENGINE_VENV)/bin/pytest tests/engine -n $(ENGINE_JOBS) --dist loadgroup --no-loadscope-reorder $(ARGS)

chaos: venv services ## Break everything at random for MINUTES= from SEED=, and check that no job suffered
	@$(VENV)/bin/inferfleet-chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

explore: venv ## Play schedules of a simulated fleet for MINUTES= from SEED=, and print those that break a promise
	@$(VENV)/bin/inferfleet-explore --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: venv ## Lint, formatting, types, import contracts, dependencies, spelling, schema drift
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy $(PACKAGES:%=-p inferfleet.%)
	@$(VENV)/bin/mypy tests benchmarks examples
	@$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/deptry $(PACKAGES)
	@$(VENV)/bin/codespell
	@$(VENV)/bin/inferfleet schema export --check schemas

bench: bench-venv ## Measure ours and hand-written aio-pika
	@scripts/setup-services .venv-bench
	@.venv-bench/bin/python benchmarks $(ARGS)

bench-peers: bench-venv ## Measure the other libraries too, in the same rounds
	@scripts/setup-services .venv-bench
	@benchmarks/setup-peers $(PYTHON)
	@.venv-bench/bin/python benchmarks --peers $(ARGS)

bench-engine: engine-venv ## Measure what the queue costs vLLM, on the CPU
	@scripts/setup-services $(ENGINE_VENV)
	@VLLM_CPU_KVCACHE_SPACE=1 $(ENGINE_VENV)/bin/python benchmarks/engine.py $(ARGS)

bench-first-token: engine-venv ## Measure the first token through a gateway, beside vLLM's server
	@scripts/setup-services $(ENGINE_VENV)
	@VLLM_CPU_KVCACHE_SPACE=1 $(ENGINE_VENV)/bin/python benchmarks/first_token.py $(ARGS)

bench-gateway: bench-venv ## Measure the gateway beside LiteLLM's proxy, and 2,000 open streams
	@scripts/setup-services .venv-bench
	@benchmarks/setup-litellm $(PYTHON)
	@.venv-bench/bin/python benchmarks/over_http.py requests $(ARGS)
	@.venv-bench/bin/python benchmarks/over_http.py streams

docs: docs-venv ## Build the site of the documentation, into build/site
	@NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build $(ARGS)
	@echo build/site/index.html

build: venv ## Build the wheel, into dist/
	@$(VENV)/bin/pip wheel -qq --no-deps --wheel-dir dist .
	@ls dist/*.whl

clean: ## Remove everything that these commands made
	@rm -rf .venv .venv-* $(VENV) $(ENGINE_VENV) build dist .coverage \
	  .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

venv:
	@scripts/setup-venv $(VENV) $(PYTHON) '.[dev,local,worker]'

bench-venv:
	@scripts/setup-venv .venv-bench $(PYTHON) '.[gateway,local,worker]' matplotlib

docs-venv:
	@scripts/setup-docs $(DOCS_VENV) $(PYTHON)

engine-venv:
	@scripts/setup-engine-venv $(ENGINE_VENV) $(PYTHON)

services: venv
	@scripts/setup-services $(VENV)
