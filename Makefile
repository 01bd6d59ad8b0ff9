# Two commands: `make demo` and `make test`. Each sets up everything it needs, once, below this folder:
#   .venv/    the Python packages of requirements.lock, hash-checked
#   .cache/   the etcd binary, Kafka's jars, Go's caches   (another place: ONCESIGN_CACHE_DIR)
#   .oncesign/  the demo's data                              (another place: ONCESIGN_DATA_DIR)

TX ?= 100000
HOURS ?= 1
IMAGE ?= docker build -f kuberay/Dockerfile --target demo -t oncesign:demo .
LOAD ?= true
ROUNDS ?= 1
SHELL := /bin/sh
# The lock names every package, Python compiles a module when it is first imported (most of them never), and what is
# installed is not downloaded again: pip need not resolve, compile or keep copies.
PIP_QUICK := --no-deps --no-compile --no-cache-dir
# Where it is set, each of hundreds of processes would compile them again.
unexport PYTHONDONTWRITEBYTECODE
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 && \
	{ command -v "$$p"; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help setup demo test proof image test-kube test-node lint lock clean

help:  ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*##/  make \1 /p' Makefile

setup: $(STAMP)  ## Install the Python packages into .venv.

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "oncesign needs Python 3.11, 3.12 or 3.13 on PATH (or: make PYTHON=/path/to/python3)" >&2; exit 1; }
	@echo "installing the Python packages of requirements.lock into $(VENV), once (about two minutes)" >&2
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install $(PIP_QUICK) --disable-pip-version-check --progress-bar on --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install $(PIP_QUICK) --disable-pip-version-check -q --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP)  ## Sign and verify TX=100000 mocked transactions end to end on real parts.
	@$(BIN)/oncesign demo --count $(TX)

test: $(STAMP)  ## Run all tests; etcd, Postgres, Kafka and Ray are started for them.
	@$(BIN)/python -m pytest -n 3

proof: $(STAMP)  ## Run every layer of docs/proof.md for long: HOURS=1 for chaos and seeds, and an hour or so for the rest.
	@$(BIN)/python -m pytest tests/simulation/test_model.py
	@$(BIN)/python -m pytest tests/vectors --transactions 10000
	@$(BIN)/oncesign simulate --crash-points pairs --workers 2
	@$(BIN)/python -m tests.simulation.mutants --seeds 1000
	@$(BIN)/python -m tests.chaos.crash_points
	@$(BIN)/oncesign chaos --minutes $$(( $(HOURS) * 30 ))
	@$(BIN)/oncesign simulate --minutes $$(( $(HOURS) * 30 )) --first $$(date +%s) --workers 2

test-kube: export IMAGE := $(IMAGE)
test-kube: export LOAD := $(LOAD)

image:  ## Build oncesign:demo, the image of kuberay/ with the demo's servers; IMAGE="…" is another way to build it.
	@$(IMAGE)

test-kube: $(STAMP)  ## Sign on the cluster of KUBECONFIG, and delete its pods; LOAD="kind load docker-image oncesign:demo" ROUNDS=1.
	@$(BIN)/python -m tests.kube --image "$$IMAGE && $$LOAD" --rounds $(ROUNDS)

test-node: $(STAMP)  ## Send ten thousand signed transactions to a go-ethereum, built once from its Go module.
	@$(BIN)/python -m pytest tests/integration/test_broadcast.py --node geth

lint: $(STAMP)  ## Check style, types, layers and sizes.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m tests.sizes

lock: $(STAMP)  ## Compile requirements.lock from pyproject.toml.
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv
	@$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links --extra local \
		--extra dev --python-version 3.11 --no-header pyproject.toml -o requirements.lock
	@for image in requirements "requirements-demo --extra local"; do set -- $$image; \
		$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-emit-find-links $$2 $$3 \
			--constraint requirements.lock --python-version 3.11 --no-header pyproject.toml -o kuberay/$$1.lock; done

clean:  ## Stop the embedded servers and remove the demo's data.
	@test ! -x $(BIN)/oncesign || $(BIN)/oncesign down
	@rm -rf .oncesign
