.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
JOB := $(VENV)/bin/gpt-job
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PRESET ?= quickstart
PROMPT ?= The
CONFIG = --preset $(PRESET) $(if $(CORPUS),--set 'data.corpus=$(CORPUS)') $(foreach assignment,$(SET),--set '$(assignment)')
AGAIN = $(if $(filter-out quickstart,$(PRESET)), PRESET=$(PRESET))$(if $(CORPUS), CORPUS=$(CORPUS))$(if $(SET), SET="$(SET)")
FROM = $(CONFIG) $(if $(RUN),--run '$(RUN)')

##@ Everyday
.PHONY: help install train generate evaluate prove
help: ## Show this list
	@awk -F':.*## ' '/^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9.-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@printf '\nVariables: PRESET=verdict  CORPUS=my.txt  SET="model.n_layer=6 seed=1"  RUN=runs/...  PROMPT="The"\n'

install: $(VENV)/.installed ## Make .venv and install the job into it
	@printf '\nNext:\n  make train\n  $(JOB) --help\n'

train: $(VENV)/.installed ## Train, or continue, a small model on this machine: no account, no GPU
	@$(JOB) train $(CONFIG)
	@printf '\nNext:\n  make generate$(AGAIN)   what it learned (PROMPT="The ")\n  make evaluate$(AGAIN)   loss on whole splits\n  $(JOB) --help   everything else\n'

generate: $(VENV)/.installed ## Continue PROMPT with the model that make train trained
	@$(JOB) generate $(FROM) --prompt '$(PROMPT)' --temperature 0.8 --top-k 50 --max-new-tokens 300

evaluate: $(VENV)/.installed ## Loss, perplexity and bits per byte on whole splits
	@$(JOB) evaluate $(FROM)

prove: $(VENV)/.installed ## Kill a training again and again, and show that it ends as if nothing had been (a minute)
	@$(VENV)/bin/python -m tests.chaos.prove $(if $(SEED),--seed $(SEED))

##@ Development
.PHONY: test check format chaos mutants bench gpu-test parity clean
test: $(VENV)/.dev $(VENV)-s3/.installed ## The whole per-commit suite
	$(VENV)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile

check: $(VENV)/.dev ## Style, types, architecture
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/unit/test_architecture.py

format: $(VENV)/.dev ## Put the code into its one style
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

chaos: $(VENV)/.dev $(VENV)-s3/.installed ## Kills, stops and storage faults in large numbers; writes reliability-report.json (long)
	@mkdir -p build && rm -f build/evidence
	RELIABILITY_EVIDENCE=build/evidence $(VENV)/bin/python -m tests.chaos.prove --kills 50
	RELIABILITY_EVIDENCE=build/evidence $(VENV)/bin/python -m pytest tests/chaos -m "slow or not slow"; code=$$?; \
	$(VENV)/bin/python -m tests.chaos.report build/evidence build && exit $$code

mutants: $(VENV)/.dev $(VENV)-s3/.installed ## Faults put into the code, each of which has to turn a test red
	$(VENV)/bin/python -m tests.chaos.mutants

bench: $(VENV)/.dev $(VENV)-s3/.installed ## What saving and loading cost, beside plain ways to do it (needs a quiet machine)
	$(VENV)/bin/python -m pytest tests/benchmarks -m "slow or not slow" -s

gpu-test: $(VENV)/.dev ## What only a GPU can show; says of each test why it is skipped without one
	$(VENV)/bin/python -m pytest tests/gpu -m "slow or not slow" -rs

parity: $(VENV)/.parity $(VENV)-tensorflow/.installed ## The tutorials' and nanoGPT's results, trained for real (half an hour)
	$(VENV)/bin/python -m pytest tests/parity -m "slow or not slow" -s


clean: ## Remove what was installed and cached here; runs stay
	rm -rf $(VENV) $(VENV)-s3 $(VENV)-tensorflow .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build

# What the targets above stand on. Without an NVIDIA driver torch's small CPU build is taken where the index has one.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found (or say make PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python lacks its venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) ..."
	@command -v nvidia-smi >/dev/null || $(PIP) install -q -c constraints.txt "torch==$(TORCH)+cpu" 2>/dev/null || true
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.parity: $(VENV)/.dev
	@$(PIP) install -q -c constraints.txt -e '.[dev,parity]'
	@touch $@

# A real S3 server (OpenStack Swift) for the tests, apart from the job's own packages.
.PHONY: $(VENV)-s3
$(VENV)-s3: $(VENV)-s3/.installed
$(VENV)-s3/.installed: $(VENV)/bin/python constraints-s3.txt
	@$(PYTHON) -m venv $(VENV)-s3 && $(VENV)-s3/bin/python -m pip install -q -r constraints-s3.txt && touch $@ \
		|| echo "no S3 server could be installed: the tests that need one will be skipped"

# TensorFlow, to write the checkpoint again that the reader of OpenAI's files is held to.
.PHONY: $(VENV)-tensorflow
$(VENV)-tensorflow: $(VENV)-tensorflow/.installed
$(VENV)-tensorflow/.installed: $(VENV)/bin/python constraints-tensorflow.txt
	@$(PYTHON) -m venv $(VENV)-tensorflow && $(VENV)-tensorflow/bin/python -m pip install -q -r constraints-tensorflow.txt \
		&& touch $@ || echo "TensorFlow could not be installed: the test that needs it will be skipped"
