SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: env test check lock clean

env: $(READY)

$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

check: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Exact versions of everything, for every supported Python.
lock: env
	$(VENV)/bin/python -m pip install -q uv
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.10 --extra test --no-annotate --no-header \
	    --constraint <(echo torch==2.13.0) -o constraints.txt setup.py

test: env check
	$(VENV)/bin/python -m pytest
