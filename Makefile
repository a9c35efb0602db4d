# Each target sets up what it needs. `make demo` and `make test` are all a new machine has to be told.
PYTHON ?= python3.11
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help demo demo-rerank demo-clip test test-all test-fast test-slow coverage lint format bench bench-short ui clean
.DEFAULT_GOAL := help

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt requirements-demo.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not here: install Python 3.11 with venv, or say PYTHON=…"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[factory,workers,serving,bench,openvino,tensorrt-rtx,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r requirements-demo.txt
	@touch $@

demo: $(READY)  ## sku_matrix.yaml -> engines, verdicts, manifest, image, a running server that answers
	@containers/engine.sh || true
	$(BIN)/enginery build
	$(BIN)/enginery demo dist/all-minilm-l6-v2

demo-rerank: $(READY)  ## a reranker: trained here in minutes, then the same walk
	@containers/engine.sh || true
	test -f examples/rerank/model/config.json || $(BIN)/python examples/rerank/train.py
	$(BIN)/enginery build --matrix examples/rerank/matrix.yaml
	$(BIN)/enginery demo dist/docstring-reranker

demo-clip: $(READY)  ## a small CLIP: trained here on pictures it draws, then the same walk
	@containers/engine.sh || true
	test -f examples/clip/model/config.json || $(BIN)/python examples/clip/train.py
	$(BIN)/enginery build --matrix examples/clip/matrix.yaml
	$(BIN)/enginery demo dist/drawn-clip

# Public clients of NIM: their dependencies and the factory's do not agree, so they have an environment of their own.
.venv-clients/.ready: requirements-clients.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-clients.txt
	@touch $@

# A file's tests share what is dear to make, so one worker runs them all (pytest-xdist 3.8 ignores its own groups under pytest 9.2).
PYTEST := ENGINERY_CACHE=$(CURDIR)/.store-tests $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# With COVERAGE=1, as in CI, the same tests in two runs: `coverage`, then `test-slow`.
test: $(if $(COVERAGE),coverage test-slow,test-all)  ## every test that can run on this machine

test-all: $(READY) .venv-clients/.ready
	@containers/engine.sh || true
	$(PYTEST)

test-fast: $(READY)  ## the tests that take seconds
	$(PYTEST) -m 'not slow and not docker'

test-slow: $(READY) .venv-clients/.ready  ## the others
	@containers/engine.sh || true
	$(PYTEST) -m 'slow or docker'

# The order is another one for each commit, and the same for all runs of one; `make coverage ORDER=…` repeats one.
ORDER ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo 0)
coverage: $(READY)  ## the tests that take seconds, in an order of chance, and the share of lines they run
	$(PYTEST) -m 'not slow and not docker' --random-order --random-order-seed=$(ORDER) --cov --cov-report=term

lint: $(READY)  ## ruff, mypy --strict, import contracts, hadolint, the matrices' schema
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint containers/*/Dockerfile
	$(BIN)/check-jsonschema --schemafile pipelines/matrix/sku_matrix.schema.json sku_matrix.yaml examples/*/matrix.yaml

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The peer's dependencies and the factory's do not agree either.
.venv-peer/.ready: requirements-peer.txt
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements-peer.txt
	@touch $@

bench: $(READY) .venv-peer/.ready  ## this server, Infinity and the engine alone, side by side: half an hour, a report
	$(BIN)/python -m benchmarks.side_by_side

bench-short: $(READY) .venv-peer/.ready  ## the same with few loads: five minutes
	$(BIN)/python -m benchmarks.side_by_side --short --output .bench/results

ui: $(READY)  ## the Dagster UI on this machine
	$(BIN)/enginery ui

clean:  ## everything that a build made, but for the virtual environment
	rm -rf dist .store .store-tests .bench .dagster .coverage build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
