# Two commands: `make demo` (the main job on real images, ending in a report) and `make test`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
RESULTS ?= demo-results

.PHONY: setup demo test lint types clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode --editable '.[dev]'
	touch $(STAMP)

demo: setup
	$(BIN)/normalcy demo --out $(RESULTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

test: lint types
	$(BIN)/python -m pytest

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
