# `make quickstart` and `make test` work alone and in either order on a machine that has only Python, pip, gcc, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart check test test-slow bench lock clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

# torch comes first and alone, under the lock: a looser line could pick another build together with gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Gridpilot needs Python 3.11 or newer; set PYTHON=..." if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch -c constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[diffusers,dmc,dev]' -c constraints.txt
	touch $@

install: $(STAMP) ## create .venv and install everything

quickstart: $(STAMP) ## nine DDPG runs and their report, in minutes on two CPU cores
	$(BIN)/python run_experiment.py -e exp_specs/quickstart.yaml -g 0

check: $(STAMP) ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP) check ## every test that CI runs
	$(BIN)/python -m pytest -n 2

test-slow: $(STAMP) ## the longer tests: learning, chaos, exact resuming
	$(BIN)/python -m pytest -n 2 -m slow --timeout 5400

bench: $(STAMP) ## the newcomer's job, with its truth log; launches beside Hydra's and Ray's; the speed of DDPG beside stable-baselines3's, of the diffusion agent's actions, of drones beside PyFlyt's, of scans, and of TD-MPC2
	$(BIN)/python -m benchmarks.newcomer
	$(BIN)/python -m benchmarks.launch --peers
	$(BIN)/python -m pip install --quiet --editable '.[diffusers,bench]' -c constraints.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.ddpg
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.diffusion
	$(BIN)/python -m benchmarks.peers.make_venv pyflyt
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.envs
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scan
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.tdmpc2

lock: ## renew constraints.txt from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra dev --extra diffusers --extra dmc --extra onnx --extra video --extra bench --quiet --no-header --no-annotate --python-version 3.11 -o constraints.txt

clean: ## remove the virtual environment and caches (never logs/)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
