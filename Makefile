# Luthier. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
READY := $(VENV)/.installed

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --require-hashes covers every package but torch and what its build brings, which depend on the machine (CPU or CUDA).
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@echo "installing the pinned packages into $(VENV); this takes some minutes"
	$(PYTHON) -m venv $(VENV)
	python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	python -m pip install --quiet "torch==$$(sed -n 's/^torch: "\(.*\)"/\1/p' versions.yaml)"
	python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

setup: $(READY)  ## make .venv and install the pinned packages

repro: $(READY)  ## run the pipeline: data and params.yaml to model card
	@luthier fresh 2>/dev/null || dvc repro
	@luthier verdict

doctor: $(READY)  ## check the machine and the checkout
	@luthier doctor

verify: $(READY)  ## derive every hash again, from the commit up
	@luthier verify

release: $(READY)  ## register the adapter: make release VERSION=v1.0.0
	@luthier release "$(VERSION)"

clean-work: $(READY)  ## remove the work dirs of finished and long idle runs
	@luthier clean-work

lint: $(READY)  ## ruff and the docstring checker
	ruff check .
	ruff format --check .
	pydoclint --quiet stages

types: $(READY)  ## mypy
	mypy

# on a worker a core (tests/conftest.py); one that has nothing left takes tests from the other's end
SHARED := -n auto --dist worksteal

test: lint types  ## what CI runs: lint, types and the tests
	pytest $(SHARED) -m "not slow and not gpu"

test-all: lint types  ## also the slow tests
	pytest $(SHARED) -m "not gpu"

test-gpu: $(READY)  ## the tests that need a CUDA device
	pytest -m gpu

bench-gpu: $(READY)  ## speed and memory beside other engines, on this machine's GPU (benchmarks/README.md)
	python -m benchmarks.peers $(if $(UNSLOTH_SITE),--unsloth-site $(UNSLOTH_SITE))

bench-data: $(READY)  ## the data stages: figures on planted sets, speed and memory up to a million rows (docs/scale.md, docs/data-figures.md)
	python -m benchmarks.data_figures
	python -m benchmarks.data --rows 100000
	python -m benchmarks.data --rows 1000000
	python -m benchmarks.data --rows 100000 --tokenize
	python -m benchmarks.data --table
	python -m benchmarks.data_figures --table

lock: $(READY)  ## resolve pyproject.toml into requirements.lock and versions.yaml again
	python -m pip install --quiet uv
	sh scripts/lock.sh

.PHONY: help setup repro doctor verify release clean-work lint types test test-all test-gpu bench-gpu bench-data lock
