# make demo: install and run the main job.  make test: install and pass the tests.  make check: everything.
# make dist: build the wheel and the source archive in dist/.
# make docs: install and build the documentation in site/; a broken link is an error.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test check docs dist
demo: $(VENV)/.installed
	$(BIN)/melmask demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check src tests benchmarks examples tools docs/conf.py
	$(BIN)/ruff check src tests benchmarks examples tools docs/conf.py
	$(BIN)/mypy
	$(BIN)/python -m pytest

dist: $(VENV)/.installed-dev
	$(BIN)/python -m hatchling build -d dist

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going docs site
	@echo "open site/index.html"

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[eval,plot,log]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "melmask needs Python 3.11 or newer; give one with PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
