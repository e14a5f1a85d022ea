# Every target sets up .venv by itself; the second time that takes no time.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CORPUS ?=

.PHONY: install demo test test-full soak lint bench clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(wildcard csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/demo/run.py $(if $(CORPUS),--corpus $(CORPUS))

test: install
	$(BIN)/python -m pytest -m "not slow and not soak"

test-full: install
	$(BIN)/python -m pytest -m "not soak"

soak: install
	$(BIN)/python -m pytest -m soak

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/step_overhead.py
	$(BIN)/python benchmarks/peer_transformers.py

clean:
	rm -rf $(VENV) build demo *.egg-info
