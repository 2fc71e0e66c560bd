# Two commands on a fresh machine: `make demo` runs the main job on the embedded classroom, `make test` runs the tests.
# Each makes its environment in .venv, with the versions of constraints.txt, by pip alone.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/core
	$(BIN)/python -m montessori_pl fit --config iter1.yaml

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

.venv/core: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv: about two minutes, once."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv: about two minutes, once."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/core

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv
