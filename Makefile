# Each target only runs again what its inputs changed.
SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
# Another choice of EXTRA installs anew.
STAMP = $(VENV)/.installed-$(EXTRA)
EXTRA ?= cpu
# Per target of tests/fuzz.
FUZZ_SECONDS ?= 600
# Tests run torch on one thread.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile

# Checkouts of the real benchmarks, which hold their tasks.
SOURCES ?= .benchmarks

.PHONY: setup real-benchmarks train test test-fast test-slow fuzz lint bench \
  warm-start docs clean

setup: $(STAMP)

$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch first and pinned: left to the others, pip would choose a CUDA build.
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e ".[$(EXTRA),dev]"
	# vLLM pulls these in; their CUDA builds do not import on a CPU torch, and vLLM
	# and transformers run without them. Where they import, they stay.
	$(BIN)/python -c "from transformers import Qwen3ForCausalLM" 2>/dev/null \
	  || $(BIN)/python -m pip uninstall --yes torchvision torchaudio torchcodec
	$(BIN)/python -c "from transformers import Qwen3ForCausalLM"
	touch $@

# With tau2-bench and VitaBench no test is skipped. What they import has our pins;
# their own would change versions that vLLM needs.
real-benchmarks: $(STAMP)
	test -d $(SOURCES)/tau2-bench || git clone --depth 1 --branch v1.0.1 \
	  https://github.com/sierra-research/tau2-bench $(SOURCES)/tau2-bench
	test -d $(SOURCES)/vitabench || git clone --depth 1 \
	  https://github.com/meituan-longcat/vitabench $(SOURCES)/vitabench
	$(BIN)/python -m pip install -c constraints.txt -e ".[tau2,vita]"
	$(BIN)/python -m pip install --no-deps --ignore-requires-python \
	  -e $(SOURCES)/tau2-bench -e $(SOURCES)/vitabench

train: $(STAMP)
	$(BIN)/rllib train file tuned_examples/mini_tau2_ppo_ewma_async.yaml

# Of both kinds: what stands on Ray or an engine comes last, in one process, since it
# shares them and would only compete with itself for the cores.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not live and not slow" $(PARALLEL)
	$(BIN)/python -m pytest -m "live and not slow"

# Neither Ray nor an engine, nor learners. A file stays in one process, with its
# fixtures.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not live and not slow and not thorough" $(PARALLEL)

# Everything else: faults with real signals, disks and kills; long runs; many examples.
# Cases of one file are shared out, too: they take seconds each. What is live goes alone:
# beside another file, on two cores, a seventh of it misses its deadlines.
test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not live" $(PARALLEL:loadfile=worksteal)
	$(BIN)/python -m pytest -m "hypothesis and not live" $(PARALLEL) \
	  --hypothesis-profile=thorough
	$(BIN)/python -m pytest -m "slow and live"

# What reached new code is kept in .fuzz; so is the input of a finding.
fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[fuzz]"
	mkdir -p .fuzz
	set -e; for target in tool_calls chat_format yaml checkpoint endpoint results; do \
	  OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $$target .fuzz/$$target \
	    -max_total_time=$(FUZZ_SECONDS) -timeout=20 -max_len=8192 -rss_limit_mb=6000 \
	    -artifact_prefix=.fuzz/$$target-; \
	done

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.run

warm-start: $(STAMP)
	$(BIN)/python -m rllib_llm_async.cli.warm_start \
	  --out rllib_llm_async/models/small_agent/weights

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site *.egg-info results
