# What people and CI call; `make help` lists the targets. Nothing but Python >= 3.11 and make is needed.

PYTHON ?= python3
VENV ?= .venv
# An index with CPU builds of torch; where it is not set, pip takes what its own index carries
# (on Linux usually the CUDA build, several gigabytes).
TORCH_INDEX ?=
# Not `?=`: some shells export HOST. Empty means the server's own default.
HOST =
PORT =
ARGS =
# Processes that run the tests; each takes a core and up to 3 GiB.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -c constraints.txt
NEEDS := finlora needs Python 3.11 or newer; choose one with: make PYTHON=python3.12 ...

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow test-tools clients check format docs bench-peers bench-train quality \
	loadtest capacity clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# With glibc's default thresholds every large activation is mapped and unmapped by the kernel again,
# which can cost half of a prefill step; these keep freed blocks in the process.
serve: export MALLOC_MMAP_THRESHOLD_ = 4294967296
serve: export MALLOC_TRIM_THRESHOLD_ = 17179869184
serve: $(VENV)/.serve  ## Install what serving needs and serve (HOST=, PORT=, ARGS=)
	@$(BIN)/finlora serve $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(ARGS)

# Small models gain nothing from more threads, and threads that wait for each other at every operation
# make a run on a busy machine many times slower.
test test-slow: export OMP_NUM_THREADS = 1
test: $(VENV)-clients/.created  ## Install everything and run the tests, with branch coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m 'not slow' --cov --cov-report=term $(ARGS)

test-slow: $(VENV)-clients/.created  ## The tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

clients: $(VENV)-clients/.created  ## Install other people's clients, which some tests run

# Each is a Debian package and the command that it brings.
TEST_TOOLS = chromium prometheus
test-tools:  ## Install programs that some tests drive (Debian, as root; says so where it cannot)
	.ci/test-tools $(TEST_TOOLS)

check: $(VENV)/.dev  ## Lint, formatting, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## Rewrite the code as ruff has it
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.dev  ## Rewrite the parts of docs/*.md that code knows better
	$(BIN)/python -m docs.generate

bench-peers: $(VENV)/.dev  ## Requests/s beside other servers on this machine (ARGS=--help)
	$(BIN)/python -m loadtest.peers.run $(ARGS)

bench-train: $(VENV)/.dev  ## Training speed and memory beside a plain PEFT loop (ARGS=--help)
	$(BIN)/python -m loadtest.training.run $(ARGS)

loadtest: $(VENV)/.loadtest  ## A minute of locust's load on a server of its own (ARGS=--help)
	@$(BIN)/python -m loadtest.run $(ARGS)

capacity: $(VENV)/.loadtest  ## The highest request rate with fast first tokens (ARGS=--help)
	@$(BIN)/python -m loadtest.capacity $(ARGS)

quality: $(VENV)/.dev  ## NF4 with an adapter beside 16 bits with one (ARGS='--data ... --test ...')
	$(BIN)/finlora quality $(ARGS)

clean:  ## Remove what tools left behind; the next target installs again
	rm -rf build dist htmlcov .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -f $(VENV)/.created $(VENV)/.serve $(VENV)/.loadtest $(VENV)/.dev $(VENV)-clients/.created

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "$(NEEDS)")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

KERNELS = $(wildcard server/finlora/native/*.[ch])
# torch first and alone: its index need not carry the other packages, nor what torch itself needs. The
# next line brings those.
$(VENV)/.serve: $(VENV)/.created constraints.txt pyproject.toml hatch_build.py $(KERNELS)
	$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.loadtest: $(VENV)/.serve
	$(PIP) -e '.[loadtest]'
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(PIP) -e '.[dev,bench,eval,loadtest,otel,train]'
	@touch $@

# Clients do not agree with all of our versions. So they lie in front of the packages above, which they
# find but do not change.
CLIENTS = tests/api/clients/requirements.txt
BENEATH = from sysconfig import get_path as path; print(path("purelib"), \
	file=open(path("purelib", vars={"base": "$(@D)"}) + "/beneath.pth", "w"))
$(VENV)-clients/.created: $(CLIENTS) constraints.txt $(VENV)/.created | $(VENV)/.dev
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	@$(BIN)/python -c '$(BENEATH)'
	$(@D)/bin/python -m pip install -c constraints.txt -r $(CLIENTS)
	@touch $@
