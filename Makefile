# Set-up in one line each: `make mini`, `make test`. The environment is made once; VENV= puts it elsewhere.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
READY := $(VENV)/.interlace-ready

.PHONY: mini test check format bench-sources install clean

mini: $(READY)  ## the whole line in miniature: corpora, training, pictures, report
	$(BIN)/interlace mini

test: $(READY)  ## every test
	$(BIN)/python -m pytest

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

bench-sources: $(READY)  ## rows per second and core of the sources beside bare readers
	$(BIN)/python benchmarks/sources.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[mini,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
