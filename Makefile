# Everything a newcomer needs: `make quickstart`, `make test`. The first call of any target makes .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(CURDIR)/$(VENV)/bin
STORE  ?= file
# Processes that run tests side by side.
JOBS   ?= 2
# How long `make soak` goes on.
MINUTES ?= 30

export PATH := $(BIN):$(PATH)
# DeepSpeed compiles its CPU collectives on first use; each environment keeps its own build.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions

.PHONY: help setup browser quickstart test test-all test-fast test-versions test-faults soak lint format docs bench gpu gpu-found gpu-test bench-gpu gpu-bytes gpu-sanitize clean

help:
	@grep -E '^## ' $(MAKEFILE_LIST) | sed 's/^## /  make /'

## setup        make .venv and install everything (done by the other targets when needed)
setup: $(VENV)/.installed
	@echo "setup: $(VENV) holds everything"

$(VENV)/.installed: setup.py pyproject.toml install.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh install.sh

# The tests open pages in a real browser. Without one, those tests say so and are skipped (in CI, they fail).
browser:
	@sh tests/install_browser.sh

## quickstart   scenes, training on two processes, evaluation, a page of pictures (STORE=s3: through a real S3 server)
quickstart: $(VENV)/.installed
	@python -m segclip.trainer.quickstart --store $(STORE)

## test         the whole test suite
test: $(VENV)/.installed browser
	OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not exhaustive"

## test-all     every case of the grids of ranks, stages and micro-batches, too: half an hour more
test-all: $(VENV)/.installed browser
	OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

## test-fast    the same without the slow ones (processes, servers)
test-fast: $(VENV)/.installed browser
	OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not slow and not exhaustive"

## test-versions  the fast tests and the documentation with the oldest and the newest releases that setup.py allows
test-versions:
	@PYTHON="$(PYTHON)" JOBS="$(JOBS)" sh tests/versions.sh

## test-faults  what a run survives: kills, damage, full disks, lost stores and servers (docs/faults.md)
test-faults: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m pytest -n $(JOBS) --dist load tests/faults tests/trainer/test_tracking.py tests/distributed/test_other_ranks.py tests/distributed/test_skipped_steps.py

## soak         half an hour of random kills; the model must come out as if nothing had happened (MINUTES=30)
soak: $(VENV)/.installed
	OMP_NUM_THREADS=1 python -m tests.faults.soak --minutes $(MINUTES)

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

# Not --quiet: then it would not see warnings.
## docs         the documentation site, into site/; warnings are errors
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 OMP_NUM_THREADS=1 python -m mkdocs build --strict
	@echo "docs: open site/index.html (to search it: python -m http.server --directory site)"

## bench        run every script in benchmarks/ and print one table
bench: $(VENV)/.installed
	python -m benchmarks.all

# On a machine with a GPU. Of all packages these need torch, triton, numpy, rich, pytest and hypothesis alone, but for
# benchmarks.gpu_training, which takes the whole installation.
## gpu          all that is to be shown on a GPU: gpu-test, bench-gpu, gpu-bytes, gpu-sanitize
gpu: gpu-test bench-gpu gpu-bytes gpu-sanitize
# They measure one card: never at the same time.
.NOTPARALLEL: gpu

gpu-found:
	@$(PYTHON) -c "import sys, torch; torch.cuda.is_available() or sys.exit('error: no GPU here: nothing to test or measure')"

# What else is installed there may warn, and warnings are errors.
## gpu-test     the tests of the Triton kernels on this machine's GPU
gpu-test: gpu-found
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH=src $(PYTHON) -m pytest tests/kernels -m "not slow and not exhaustive"

## bench-gpu    the Triton kernels on this machine's GPU, beside plain torch run eagerly and compiled
bench-gpu: gpu-found
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu_kernels --json benchmarks/results/gpu_kernels.json
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu_training --json benchmarks/results/gpu_training.json

## gpu-bytes    the bytes they really move, counted by ncu
gpu-bytes: gpu-found
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu_bytes --json benchmarks/results/gpu_bytes.json

## gpu-sanitize the Triton kernels under compute-sanitizer
gpu-sanitize: gpu-found
	PYTHONPATH=src $(PYTHON) -m benchmarks.gpu_sanitize --json benchmarks/results/gpu_sanitize.json

## clean        remove .venv, runs and caches
clean:
	rm -rf $(VENV) .versions runs build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
