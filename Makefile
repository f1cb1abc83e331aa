# Two commands matter: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test lint peers clean

setup: $(READY)

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv/.dev: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group dev
	touch $@

demo: $(READY)
	$(BIN)/puna run recipes/quickstart.yaml

# Two files of tests at a time, so the libraries beneath take one thread each; then those that watch a clock, alone.
# In their own order: xdist's, most tests first, leaves the longest test, alone in its file, to one process at the end.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not clock" --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 30
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m clock --durations 10

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What benchmarks/inference.py and benchmarks/serving.py compare with; a C++ compiler must be there.
peers: .venv/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check cmake==4.4.5 ninja==1.13.2
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
