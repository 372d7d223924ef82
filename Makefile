# `make train` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/arithmetic
SEED ?= 0
JOBS ?= 2
ARGS ?=
BIN := $(VENV)/bin

.PHONY: train test bench gpu lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dapo-fast needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

# The whole of Algorithm 1 on the built-in task: problems in, a better model and a report out.
train: $(VENV)/.installed
	$(BIN)/dapo-fast run $(RUN) --preset arithmetic seed=$(SEED)

# JOBS processes side by side, each with whole files of tests, whose fixtures are made once; the longest come first.
test: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --durations=20

# `make bench ARGS=--quick` takes minutes on two CPU cores.
bench: $(VENV)/.bench-installed
	$(BIN)/python -m pytest benchmarks $(ARGS)

# Everything that needs a GPU to be known, in nine minutes, with the Python that is there: nothing is installed.
gpu:
	$(PYTHON) -m benchmarks.gpu $(ARGS)

$(VENV)/.bench-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,bench]"
	touch $@

lint: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs
