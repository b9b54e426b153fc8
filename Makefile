SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
# Processes of the demo: one for each GPU, at most two, or two on CPUs.
RANKS ?= $(shell n=$$(nvidia-smi -L 2>/dev/null | wc -l); echo $$((n == 1 ? 1 : 2)))
# Tests that go side by side: one more than there are cores, for a test that waits for a launcher leaves its core idle.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))
TRAIN := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/deepspeed --quiet --num_gpus $(RANKS) launch/train.py

.PHONY: env demo test fuzz soak check bench docs lock clean
.DELETE_ON_ERROR:

env: $(READY)

# torch by pip, which may be told of a build without CUDA; the rest by uv, in a quarter of the time, where it can.
$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c constraints.txt torch==2.13.0 uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[test]' || $(PIP) -c constraints.txt -e '.[test]'
	touch $@

# From text to trained models, judged and heard: the baseline, one that grows, one with convolution attention. Started
# again it goes on where it was.
demo: env
	$(BIN)/python -m data_prep tokenize --source installed:sympy,mpmath,networkx --out data/demo
	$(TRAIN) --config launch/recipes/demo_gpt2.yaml
	$(BIN)/python launch/evaluate.py runs/demo_gpt2 --split test --samples 128
	$(BIN)/python launch/generate.py runs/demo_gpt2 --prompt "def " --max_new_tokens 120 --seed 1
	$(TRAIN) --config launch/recipes/demo_progressive.yaml
	$(BIN)/python launch/evaluate.py runs/demo_progressive --split test --samples 128
	$(TRAIN) --config launch/recipes/demo_conv_attention.yaml
	$(BIN)/python launch/evaluate.py runs/demo_conv_attention --split test --samples 128
	$(BIN)/python launch/generate.py runs/demo_conv_attention --prompt "def " --max_new_tokens 120 --seed 1
	$(BIN)/python launch/compare.py runs/demo_gpt2 runs/demo_progressive runs/demo_conv_attention --out report
	@echo
	@echo "TensorBoard: $(BIN)/tensorboard --logdir runs, then open http://localhost:6006"

# Files go side by side, their tests one after the other: a file's tests share the runs that they look at.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/ and a reference from the docstrings, as a site in site/; `.venv/bin/mkdocs serve` shows it.
docs: env
	$(BIN)/mkdocs build --strict

# Every parser of outside input against 200,000 damaged files: some ten minutes on one core.
fuzz: env
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/fuzz.py

# 200 short runs to which something happens again and again, then half an hour in which nothing may grow: over an hour.
soak: env
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/soak.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/flat.py

# Every figure of speed and memory that README and docs/measured.md tell, measured here: some three hours on two cores,
# and nothing else beside it. NANOGPT=~/nanoGPT, a checkout of it, takes part; litgpt gets an environment of its own.
BENCHES := prep startup overhead head train loader memory checkpoints growth generation conv_attention
bench: env .venv-litgpt/.ready data/demo/manifest.json
	set -e; for name in $(BENCHES); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py; done
	$(BIN)/python launch/train.py --config launch/recipes/origin_gpt2.yaml --run_dir runs/generation --data.path data/demo \
	    --model.context 1280 --train.steps 200 --train.micro_batch_size 1 --train.global_batch_size 1 \
	    --train.precision fp32 --train.eval_every 0 --train.test_samples 0
	$(BIN)/python benchmarks/generation.py --run runs/generation --data data/demo
	$(BIN)/python benchmarks/train_peers.py --litgpt .venv-litgpt $(if $(NANOGPT),--nanogpt $(NANOGPT))

# litgpt 0.5 and this project's packages want different versions of huggingface-hub and psutil.
.venv-litgpt/.ready:
	$(PYTHON) -m venv .venv-litgpt
	.venv-litgpt/bin/python -m pip install -q --disable-pip-version-check torch==2.13.0 litgpt==0.5.13 \
	    "huggingface-hub<1.4" psutil==7.2.2
	touch $@

data/demo/manifest.json: $(READY)
	$(BIN)/python -m data_prep tokenize --source installed:sympy,mpmath,networkx --out data/demo

# Exact versions of everything, for every supported Python.
lock: env
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --extra test --no-annotate --no-header \
	    --constraint <(echo torch==2.13.0) -o constraints.txt setup.py

clean:
	rm -rf $(VENV) .venv-litgpt *.egg-info .pytest_cache .mypy_cache .ruff_cache
