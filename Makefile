# Everything a newcomer needs: `make quickstart`, `make test`. The first call of any target makes .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
STORE  ?= file

export PATH := $(BIN):$(PATH)
# DeepSpeed compiles its CPU collectives on first use; each environment keeps its own build.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions

.PHONY: help setup quickstart test test-fast lint format bench bench-gpu clean

help:
	@grep -E '^## ' $(MAKEFILE_LIST) | sed 's/^## /  make /'

## setup        make .venv and install everything (done by the other targets when needed)
setup: $(VENV)/.installed
	@echo "setup: $(VENV) holds everything"

$(VENV)/.installed: setup.py pyproject.toml install.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh install.sh

## quickstart   scenes, training on two processes, evaluation, a page of pictures (STORE=s3: through a real S3 server)
quickstart: $(VENV)/.installed
	@python -m segclip.trainer.quickstart --store $(STORE)

## test         the whole test suite
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest

## test-fast    the same without the slow ones (processes, servers)
test-fast: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest -m "not slow"

## lint         ruff, mypy, import-linter
lint: $(VENV)/.installed
	ruff check .
	ruff format --check .
	mypy
	lint-imports

## format       let ruff lay out the code
format: $(VENV)/.installed
	ruff check --fix .
	ruff format .

## bench        run every script in benchmarks/ and print one table
bench: $(VENV)/.installed
	python -m benchmarks.all

## bench-gpu    the Triton kernels on this machine's GPU (of all packages it needs torch, triton, numpy and rich alone)
bench-gpu:
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu_kernels --json benchmarks/results/gpu_kernels.json
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu_contrastive --json benchmarks/results/gpu_contrastive.json

## clean        remove .venv, runs and caches
clean:
	rm -rf $(VENV) runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
