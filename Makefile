# Everything is done by these targets; CI runs `make check` and `make test`.
#
# Knobs (all optional):
#   PYTHON=python3.12       the interpreter of a new .venv (after `make clean`)
#   TORCH_BACKEND=cpu       which build of torch: cpu, cu130, auto (passed to uv as it is)
#   EXTRAS=name,name        more extras to install, besides dev
#   ARGS=...                more arguments for the command that a target runs

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Every run and every test starts interpreters; without bytecode each compiles its libraries again.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
EXTRAS ?=
TORCH_BACKEND ?=
ARGS ?=

comma := ,
# Setting a knob makes a stamp of its own; without knobs any finished set-up will do.
DONE := $(VENV)/.set-up
STAMP := $(DONE)$(if $(EXTRAS)$(TORCH_BACKEND),-with-$(subst $(comma),+,$(EXTRAS))-$(TORCH_BACKEND))

.PHONY: help setup demo test check torture bench bench-long bench-gpu reference drawing lock base clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@awk '/^#   [A-Z]/ { sub(/^# */, ""); print }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install gradroute with everything that it needs
	@echo "Set up: $(BIN)/gradroute, or 'source $(BIN)/activate'."

demo: $(STAMP) ## train, ablate, measure and plot the whole experiment (ARGS=--quick: one run)
	$(BIN)/gradroute demo $(ARGS)

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -q -n auto --dist worksteal $(ARGS)

check: $(STAMP) ## format, lint, types and import order, without changing a file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports --no-cache

torture: $(STAMP) ## kill, fill, damage, fuzz: the long form of tests/torture (ARGS='kills damage')
	$(BIN)/python -m torture $(ARGS)

bench: $(STAMP) ## what gradroute costs against the other ways, on a CPU; under half an hour
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/bench.py $(ARGS)

bench-long: $(STAMP) ## steps of 64k tokens, and the whole experiment against the usual way
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/bench.py --long $(ARGS)

bench-gpu: $(STAMP) ## the training step on a GPU; without one, a line that says so
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/gpu.py $(ARGS)

reference: $(STAMP) ## make docs/reference/ again from docstrings, schema and parser
	$(BIN)/python tools/make_reference.py

drawing: $(STAMP) ## make the drawing of the README again
	$(BIN)/python tools/make_drawing.py

base: $(STAMP) ## make the embedded model again from its seed
	$(BIN)/python tools/make_base.py $(ARGS)

# torch keeps the release that pyproject.toml pins; its wheels pin their own CUDA packages. No
# find-links folder here: a local build's version would get into the file.
lock: ## bring constraints.txt to the newest releases
	@trap 'rm -f constraints.new' EXIT; \
	uv="$$(command -v uv || command -v $(BIN)/uv)" \
	    || { echo "error: no uv here; run 'make setup' once, or install uv." >&2; exit 1; }; \
	{ echo "# The releases that the tests ran on; made by \`make lock\`."; \
	  env -u UV_FIND_LINKS "$$uv" pip compile -q --universal --no-header --no-annotate \
	      --extra dev pyproject.toml | sed -E '/^(nvidia-|cuda-|triton==)/d'; \
	} > constraints.new && mv constraints.new constraints.txt

clean: ## remove .venv, caches and builds; runs are kept
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find gradroute tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" EXTRAS="$(EXTRAS)" TORCH_BACKEND="$(TORCH_BACKEND)" bash tools/setup.sh
	@touch $(DONE) $@
