# One command each; every target does its own set-up. PYTHON may name another interpreter (3.11 or 3.12).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=
# a worker that dies or a test that hangs ends the run and is named, instead of being tried again
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=10 \
	--max-worker-restart=0 --timeout=900

.PHONY: run test test-long lint base study robot-rehearsal benchmark setup tools clean

run: setup  ## train, imagine, score, improve, evaluate: the whole loop at embedded scale, then the report
	$(BIN)/python ray_job.py $(ARGS)

test: tools  ## lint, types, floors and every test but the long ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(PYTEST) $(ARGS)

test-long: tools  ## the tests that take minutes each: killed runs, sharded training, the published classes in a loop
	$(PYTEST) -m long $(ARGS)

lint: tools
	$(BIN)/pre-commit run --all-files

base: setup  ## make the small base models anew on a machine with a GPU (docs/embedded-models.md)
	$(BIN)/python tools/base all $(ARGS)

study: setup  ## the paper's comparison of methods over seeds, many hours (docs/study.md)
	$(BIN)/python ray_job.py scale=study task=all $(ARGS)

robot-rehearsal: tools  ## the whole way to a real robot, with stand-ins for arm, cameras and person
	$(BIN)/python benchmarks/robot_rehearsal.py $(ARGS)

benchmark: setup  ## print the figures of benchmarks/RESULTS.md on this machine
	$(BIN)/python benchmarks/simulation.py  # others take arguments: docs/adapter.md, docs/sizes.md

setup: $(VENV)/.installed

# --no-compile: pip would compile 20 000 files one by one; Python keeps those that are imported
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
unexport PYTHONDONTWRITEBYTECODE

$(VENV)/.installed: requirements.txt tools/system_packages.sh
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@# torch first and alone: whoever asks for it later finds it installed and pulls nothing else
	$(PIP) torch==2.13.0
	$(PIP) -r requirements.txt
	sh tools/system_packages.sh renderer $(BIN)/python
	touch $@

$(VENV)/.tools: $(VENV)/.installed requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch $@

tools: $(VENV)/.tools
	sh tools/system_packages.sh browser $(BIN)/python
	sh tools/system_packages.sh prometheus $(BIN)/python

clean:
	rm -rf $(VENV) outputs
