# make demo | test | test-slow | lint | format | docs | benchmark
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

demo: $(VENV)/.demo
	$(BIN)/mlm train

# two processes with a thread each: more threads than cores would be in each other's way
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(VENV)/.slow
	$(BIN)/pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/docs/index.html"

# for an hour, with nothing beside it: tables in build/benchmarks.md and build/benchmarks.json
benchmark: $(VENV)/.dev
	for each in steps start synthetic_data masking text_preparation resume sweeps languages ranks scaling table; do \
		$(BIN)/python benchmarks/$$each.py || exit 1; done

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e '.[text,sweep,report,onnx,optim,test,lint,docs]'
	touch $(VENV)/.demo $@

$(VENV)/.slow: $(VENV)/.dev
	$(BIN)/pip install -q -c constraints.txt -e '.[ray]'
	touch $@

.PHONY: demo test test-slow lint format docs benchmark
