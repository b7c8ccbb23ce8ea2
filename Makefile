# `make serve`, `make test` and `make test-all` need Python 3.11 and make, nothing else: each installs what it needs into .venv.
PYTHON ?= python3.11
UV_VERSION := 0.13.8
CONFIG ?= deploy/examples/local.yaml
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.locked
PROTOS := $(wildcard protos/baton/v1/*.proto)
PACKAGES := cluster kv_transfer prefill_workers decode_workers router deploy tests

# A folder with wheels of the CPU build of torch, where there is one; otherwise uv's own source of them.
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
TORCH :=
else
TORCH := --torch-backend cpu
endif

.PHONY: setup serve test test-all chaos check lint types fast lock chart protos protos-check clean

setup: $(STAMP)

$(STAMP): requirements/cpu.lock pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "Installing the locked packages into $(VENV) ..."
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(TORCH) --override requirements/overrides.txt -r requirements/cpu.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $(STAMP)

serve: setup .baton/demo-model
	@exec $(BIN)/baton up $(CONFIG)

.baton/demo-model: $(STAMP)
	@test -d $@ || $(BIN)/baton model demo $@

# Tests are compiled once, not by each of their processes, also where the environment forbids to write bytecode.
test test-all fast chaos: export PYTHONDONTWRITEBYTECODE :=

# Fast tests, one more at a time than there are cores, then those with real engines and clusters, one at a time: some twenty minutes on two cores.
test: fast
	$(BIN)/python -m pytest -m "engine and not long"

# All there are: what must pass before a change lands. Three quarters of an hour on two cores.
test-all: fast
	$(BIN)/python -m pytest -m "engine or long"

chaos: setup
	$(BIN)/python -m tests.chaos --json

check: lint types fast

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))

fast: setup
	$(BIN)/python -m pytest -m "not engine and not long" -n auto --dist worksteal

# Generated code is committed; tests/test_house.py fails when it is older than the .proto files.
protos: setup
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --grpc_python_out=. --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
		--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc $(PROTOS)

lock: setup
	$(BIN)/uv pip compile --quiet pyproject.toml --extra cpu --extra dev --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 $(TORCH) --override requirements/overrides.txt \
		--custom-compile-command "make lock" --no-emit-index-url -o requirements/cpu.lock
	$(BIN)/uv pip compile --quiet pyproject.toml --extra gpu --python-version 3.11 \
		--python-platform x86_64-manylinux_2_28 --override requirements/overrides.txt \
		--custom-compile-command "make lock" --no-emit-index-url -o requirements/gpu.lock

# What of the Helm chart is generated; needs helm. tests/deploy/test_helm_chart.py fails when it is stale.
chart: setup
	$(BIN)/python -m deploy.helm_chart

clean:
	rm -rf $(VENV) .baton
