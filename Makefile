# Every target sets itself up: .venv is made by the machine's python3 from the pinned, hashed
# requirements.txt.  A second call finds the stamp and does nothing.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
# Ray's workers parse torch and ray from source where nothing is byte-compiled: twice as slow.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test test-slow lint lock clean

$(STAMP): requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "spcl needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.txt
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --no-deps --no-build-isolation -e .
	touch $@

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/python ray_jobs/train.py --benchmark streets --method spcl --name demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Only when a dependency changes: pins every package, with hashes, for every platform.
lock:
	VIRTUAL_ENV=.venv $(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 \
	    --extra dev --no-header -o requirements.txt pyproject.toml

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
