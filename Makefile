# One command each. Everything runs inside .venv, which the first command makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := setup.py platform/nvcim/vectors.h platform/nvcim/crossbar/kernel.cpp platform/nvcim/prompts/frozen_kernel.cpp

.PHONY: install demo test test-all fidelity check format clean

# The install builds the kernels where there is GCC.
$(STAMP): pyproject.toml constraints.txt $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test,dev]"
	touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python -m jobs.demo

test: $(STAMP)
	$(BIN)/python -m pytest

test-all: $(STAMP)
	$(BIN)/python -m pytest -m ""

fidelity: $(STAMP)
	$(BIN)/python -m tests.fidelity

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache
