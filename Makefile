# One verb per need, the same on a laptop and in CI. `make help` lists them.

PYTHON ?= python3.11
VENV := .venv
OTHER := .venv-$(notdir $(PYTHON))
AUDIT := .venv-audit
DOCS := .venv-docs
CLIENTS := .venv-clients
BIN := $(VENV)/bin
STORE ?= artifacts
SPLITS ?= 2
# Processes that tests run in: most of their time is compilation, which keeps one core busy.
WORKERS ?= 2

# What `make test-isa` runs: instruction sets, threads, keys of the stochastic tests, and which tests.
ISAS ?= native AVX2 SSE4_2
THREADS ?= 1 2
KEYS ?= 10
TESTS ?= tests

# What `make test-python` runs: a part of the tests of every stage, real servers among them.
PYTHON_TESTS ?= tests/models tests/abstain/test_api.py tests/training/data tests/training/importing tests/training/test_fit.py \
	tests/training/test_import_posterior.py tests/service/open_inference tests/service/test_http.py tests/service/test_without_linux.py

# STRICT=1: `make audit` fails where the service that knows vulnerabilities does not answer.
STRICT ?=

# What serving is measured on: a worker and its clients together.
CORES ?= 0,1

.DEFAULT_GOAL := help
.PHONY: help demo clients test test-install test-isa test-python serve check format docs audit bench bench-guarantees bench-quality bench-selection

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The lock is complete, so pip need not look for dependencies: it would want those with extras, such as etils[epath], under
# that very name. The stamp is made last: an install that was cut off is made again.
$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m pip check --quiet
	touch $@

# Of the audit's programs alone: no test needs them.
$(AUDIT)/installed: requirements-audit.lock
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-audit.lock
	touch $@

# Of the website's programs alone; they read the code and do not import it.
$(DOCS)/installed: requirements-docs.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-docs.lock
	touch $@

# Generators of clients, and what the generated clients need.
$(CLIENTS)/installed: requirements-clients.lock
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-clients.lock
	npm install --silent --no-audit --no-fund --prefix $(CLIENTS) openapi-typescript@7.13.0 typescript@5.9.3
	touch $@

demo: $(VENV)/installed ## fit, serve, and ask about a digit and about the letter B
	@$(BIN)/python examples/demo.py --store $(STORE)

# Most of the tests' time is compilation, so XLA optimises little in them; in the files that test rounding, programs
# are compiled as the service compiles them. `make test-isa` and pytest alone use XLA's own settings for all tests.
# XLA ends a process whose flags it does not know; the JAX for Python 3.12 and later does not know that of the emitters.
EMITTERS ?= --xla_cpu_use_fusion_emitters=false
QUICK = --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true $(EMITTERS)
OPTIMISED = tests/models/bundles/test_golden.py tests/models/prediction/test_packing.py \
	tests/models/prediction/test_rounding.py tests/service/test_batch_sizes.py
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed ## the whole test suite
	XLA_FLAGS="$(QUICK) $(XLA_FLAGS)" $(PYTEST) $(OPTIMISED:%=--ignore=%)
	$(PYTEST) $(OPTIMISED)

test-isa: $(VENV)/installed ## the tests by instruction set and threads, with ten keys (ISAS= THREADS= KEYS= TESTS=)
	$(BIN)/python tests/isa.py --isas $(ISAS) --threads $(THREADS) --keys $(KEYS) --tests $(TESTS)

# The lock holds for every Python from 3.11 on, with other versions of JAX, Flax and numpy from 3.12 on.
test-python: ## a part of the tests with another Python, in .venv-PYTHON (PYTHON=python3.13 PYTHON_TESTS=)
	$(MAKE) $(OTHER)/installed VENV=$(OTHER) PYTHON=$(PYTHON)
	XLA_FLAGS="$(filter-out $(EMITTERS),$(QUICK)) $(XLA_FLAGS)" $(OTHER)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(PYTHON_TESTS)

test-install: $(VENV)/installed ## the wheel, installed by pip into a fresh environment, serves and then fits (PYTHON=python3.13)
	$(BIN)/python tests/install.py --python $(PYTHON)

serve: $(VENV)/installed ## the service in the foreground, on port 3000
	$(BIN)/abstain serve --store $(STORE) --port 3000

check: $(VENV)/installed ## formatter, linter, type checker
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: $(VENV)/installed ## let the formatter and the linter mend what they can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(DOCS)/installed ## the guides and the API as a website, in build/docs
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

audit: $(VENV)/installed $(AUDIT)/installed ## known vulnerabilities, SBOMs and licences, in build/audit (STRICT=1)
	$(BIN)/python deploy/audit.py --tools $(AUDIT)/bin $(if $(STRICT),--strict)

clients: $(VENV)/installed $(CLIENTS)/installed ## clients generated from /docs.json compile and work (needs npm)
	PATH="$(CURDIR)/$(CLIENTS)/bin:$(CURDIR)/$(CLIENTS)/node_modules/.bin:$$PATH" \
	  $(BIN)/python -m pytest tests/service/openapi/test_generated_clients.py

bench: $(VENV)/installed ## every speed benchmark (CORES=0,1: those that serving is measured on)
	$(BIN)/python benchmarks/kernel.py --cores "$(CORES)"
	$(BIN)/python benchmarks/throughput.py --cores "$(CORES)"
	$(BIN)/python benchmarks/startup.py --cores "$(CORES)"
	$(BIN)/python benchmarks/serving_memory.py --cores "$(CORES)"
	$(BIN)/python benchmarks/access.py --cores "$(CORES)"
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/records.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/memory.py

bench-quality: $(VENV)/installed ## the quality tables (DATA=folder with mnist.npz)
	$(BIN)/python benchmarks/quality.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/methods.py $(if $(DATA),--data $(DATA)) --splits $(SPLITS)
	$(BIN)/python benchmarks/strong.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/tabular.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/intervals.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/drift.py

bench-selection: $(VENV)/installed ## how the decisions of images and of tables were chosen (DATA=folder of the .npz files)
	$(BIN)/python benchmarks/selection.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/table_selection.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/regret.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/shares.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/selective.py $(if $(DATA),--data $(DATA))

bench-guarantees: $(VENV)/installed ## what is guaranteed, on simulated rows and over random splits (DATA=folder of the .npz files)
	$(BIN)/python benchmarks/guarantees.py
	$(BIN)/python benchmarks/risk.py
	$(BIN)/python benchmarks/fdr.py
	$(BIN)/python benchmarks/conditional_coverage.py
	$(BIN)/python benchmarks/far_rows.py
	$(BIN)/python benchmarks/recalibration.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/class_weights.py
	$(BIN)/python benchmarks/unseen.py
