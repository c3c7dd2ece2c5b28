# Everything a newcomer needs: `make demo` and `make test`. Both create .venv and install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow lint format wheel embedded-base clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## pictures from the embedded model, then two small LoRAs trained on it
	$(BIN)/lorasmith demo --out demo

test: $(STAMP)  ## all tests but the slow ones (CPU, offline)
	$(BIN)/python -m pytest -n auto -m "not slow"

test-slow: $(STAMP)  ## kills, several processes, whole guides, the wheel
	$(BIN)/python -m pytest -n auto -m slow

lint: $(STAMP)  ## style, types, and the one-way-imports contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

embedded-base: $(STAMP)  ## rebuild the embedded model from public packages (see recipes/embedded_base/README.md)
	PATH="$(abspath $(BIN)):$$PATH" bash recipes/embedded_base/rebuild.sh

clean:
	rm -rf $(VENV) build dist demo
