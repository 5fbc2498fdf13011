# `make demo` (the main job on real images, ending in a report), `make test`, and `make docs`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
RESULTS ?= demo-results

.PHONY: setup demo test docs browser database lint types clean

setup: $(STAMP)

$(STAMP): pyproject.toml hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv pip install --quiet --compile-bytecode --editable '.[dev]'
	$(BIN)/python hatch_build.py
	touch $(STAMP)

demo: setup
	$(BIN)/normalcy demo --out $(RESULTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# The review page is tested in the system's Chromium; on Debian it is installed where that is allowed.
browser:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y chromium >/dev/null; } || \
	  echo "No Chromium: install one (Debian: apt-get install chromium) to test the review page."

# A study of `normalcy select` is kept in a real PostgreSQL in the tests.
database:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y postgresql >/dev/null; } || \
	  echo "No PostgreSQL: install it (Debian: apt-get install postgresql) to test studies in a database."

test: lint types browser database
	$(BIN)/python -m pytest

# The documentation site, build/site/index.html; tutorials are executed where they or the package changed.
docs: setup
	$(BIN)/python docs/make_site.py

clean:
	rm -rf build .cache .venv .mypy_cache .ruff_cache .pytest_cache
