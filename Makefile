.DEFAULT_GOAL := help
SHELL := /bin/sh

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
JOB := $(VENV)/bin/gpt-job
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
PRESET ?= quickstart
PROMPT ?= The
CONFIG = --preset $(PRESET) $(if $(CORPUS),--set 'data.corpus=$(CORPUS)') $(foreach assignment,$(SET),--set '$(assignment)')
AGAIN = $(if $(filter-out quickstart,$(PRESET)), PRESET=$(PRESET))$(if $(CORPUS), CORPUS=$(CORPUS))$(if $(SET), SET="$(SET)")
FROM = $(CONFIG) $(if $(RUN),--run '$(RUN)')

##@ Everyday
.PHONY: help install train generate evaluate serve serve-test ladder prove
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

serve: $(VENV)/.installed ## Answer completions over HTTP with the model that make train trained
	@$(JOB) serve $(FROM)

serve-test: $(VENV)/.installed ## Check its answers, put load on it, and write a report into serve-test/
	@$(JOB) serve-test $(FROM)

ladder: PRESET = baby-cpu
ladder: $(VENV)/.installed ## From a bigram to a GPT, one part at a time: a table and a page (four minutes)
	@$(JOB) ladder $(CONFIG)

prove: $(VENV)/.installed ## Kill a training again and again, and show that it ends as if nothing had been (a minute)
	@$(VENV)/bin/python -m tests.chaos.prove $(if $(SEED),--seed $(SEED))

##@ Cluster
.PHONY: manifests k8s-test k8s-apply
manifests: ## Render what Kubernetes is given into build/manifests (needs kubectl)
	@k8s/render.sh $(CURDIR)/build/manifests

k8s-test: $(VENV)/.k8s build/k8s-models/.installed ## Manifests, alerts and dashboard, held to schemas and to a real Prometheus
	$(VENV)/bin/yamllint --strict k8s tests/k8s && $(VENV)/bin/shellcheck k8s/*.sh
	$(VENV)/bin/python -m pytest tests/unit/test_manifests.py tests/k8s -m "slow or not slow" -n 2 --dist loadfile

k8s-apply: ## Give OVERLAY, a folder of k8s/ or of k8s/overlays/, to the cluster (NAMESPACE)
	@test -n "$(OVERLAY)" || { echo "say which: make k8s-apply OVERLAY=mine (k8s/README.md says what to edit)"; exit 2; }
	kubectl apply $(if $(NAMESPACE),--namespace $(NAMESPACE)) \
		-k $(firstword $(wildcard k8s/$(OVERLAY) k8s/overlays/$(OVERLAY)) k8s/overlays/$(OVERLAY))

##@ Development
.PHONY: test check format docs chaos mutants bench gpu-test parity clean
test: $(VENV)/.dev $(VENV)-s3/.installed ## The whole per-commit suite
	$(VENV)/bin/python -m pytest -m "not slow and not image" -n 3 --dist loadfile

check: $(VENV)/.dev ## Style, types, architecture
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest -q tests/unit/test_architecture.py

format: $(VENV)/.dev ## Put the code into its one style
	$(VENV)/bin/ruff check --fix . ; $(VENV)/bin/ruff format .

docs: $(VENV)/.dev ## Write the tables of README.md that come from code
	$(VENV)/bin/python -m tests.write_docs

chaos: $(VENV)/.dev $(VENV)-s3/.installed ## Kills, stops and storage faults in large numbers; writes reliability-report.json (long)
	@mkdir -p build && rm -f build/evidence
	RELIABILITY_EVIDENCE=build/evidence $(VENV)/bin/python -m tests.chaos.prove --kills 50
	HYPOTHESIS_PROFILE=long $(VENV)/bin/python -m pytest tests/unit tests/integration -m "slow or not slow"
	RELIABILITY_EVIDENCE=build/evidence HYPOTHESIS_PROFILE=long $(VENV)/bin/python -m pytest tests/chaos -m "slow or not slow"; code=$$?; \
	$(VENV)/bin/python -m tests.chaos.report build/evidence build && exit $$code

mutants: $(VENV)/.dev $(VENV)-s3/.installed ## Faults put into the code, each of which has to turn a test red
	$(VENV)/bin/python -m tests.chaos.mutants

bench: $(VENV)/.peers $(VENV)-s3/.installed ## What training, saving, loading, generating and serving cost, beside others (on a quiet machine)
	OMP_NUM_THREADS=$$(nproc) $(VENV)/bin/python -m pytest tests/benchmarks -m "slow or not slow" -s

gpu-test: $(VENV)/.dev ## What only a GPU can show; says of each test why it is skipped without one
	$(VENV)/bin/python -m pytest tests/gpu -m "slow or not slow" -rs

parity: $(VENV)/.parity $(VENV)-tensorflow/.installed ## The tutorials' and nanoGPT's results, trained for real (half an hour)
	$(VENV)/bin/python -m pytest tests/parity -m "slow or not slow" -s

##@ Image
# What the image is built with and from; unset, the Dockerfile's own defaults hold. TORCH=cpu is the small build.
DOCKER ?= docker
TORCH ?= cuda
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)
IMAGE ?= gpt-pretrain-job:$(VERSION)-$(TORCH)
S3_IMAGE ?= gpt-pretrain-job-s3:$(VERSION)
comma := ,
BUILD = $(DOCKER) build $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(PLATFORM),--platform $(PLATFORM)) \
	$(if $(PIP_CA),--secret id=pip_ca$(comma)src=$(PIP_CA)) $(if $(WHEELS),--build-context wheels=$(WHEELS))
COMPOSE = IMAGE=$(IMAGE) S3_IMAGE=$(S3_IMAGE) PRESET=$(PRESET) JOB_SET="$$(printf '%s\n' $(SET))" \
	$(DOCKER) compose --file docker/compose.yaml

.PHONY: image s3-image image-test docker-run compose-up compose-down lint-image locks audit
image: ## Build it: TORCH=cpu, and DOCKER BASE PIP_CA WHEELS ASSETS IMAGE PLATFORM
	$(BUILD) $(if $(ASSETS),--build-context assets=$(ASSETS)) --build-arg TORCH=$(TORCH) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$(REVISION) --file docker/Dockerfile --tag $(IMAGE) .
	@$(DOCKER) image inspect $(IMAGE) --format '$(IMAGE): {{.Size}} bytes'

s3-image: # An S3 server for compose and for image-test
	$(BUILD) --file docker/s3/Dockerfile --tag $(S3_IMAGE) .

image-test: $(VENV)/.dev ## Run it in every way it is meant to be run (make image s3-image first, same TORCH)
	DOCKER=$(DOCKER) IMAGE=$(IMAGE) S3_IMAGE=$(S3_IMAGE) $(VENV)/bin/python -m pytest tests/image -m image

docker-run: ## Train in it, with the volumes gpt-runs and gpt-cache (PRESET CORPUS SET, TORCH=cpu)
	$(DOCKER) run --rm $(if $(filter cuda,$(TORCH)),--gpus all) --volume gpt-runs:/runs --volume gpt-cache:/cache \
		--publish 127.0.0.1:9108:9108 $(IMAGE) train $(CONFIG)

compose-up: TORCH = cpu
compose-up: image s3-image ## The job, an S3 server, Prometheus, Pushgateway and Grafana (PRESET SET SERVICES)
	$(COMPOSE) up --detach $(SERVICES)
	@printf '\nGrafana http://127.0.0.1:3000  Prometheus :9090  Pushgateway :9091  metrics :9108  S3 :8080\n'
	@printf 'what it says: $(DOCKER) compose --project-name gpt-pretrain-job logs --follow job\n'

compose-down: TORCH = cpu
compose-down: ## End it; what it kept stays in its volumes
	$(COMPOSE) down

lint-image: $(VENV)-tools/.installed ## hadolint, shellcheck and yamllint
	$(VENV)-tools/bin/hadolint --config docker/hadolint.yaml docker/Dockerfile docker/s3/Dockerfile
	$(VENV)-tools/bin/shellcheck .ci/run k8s/*.sh && $(VENV)-tools/bin/yamllint --strict docker k8s tests/k8s

# The two builds of torch are two locks: PyPI's, with the CUDA libraries, and the small one of its own index (or WHEELS).
LOCK = $(VENV)-tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make locks'
# Whatever a setting can ask for is there: nobody can install into an image that is read-only.
IMAGE_EXTRAS := bpe parquet tensorboard zstd
OF_JOB = $(LOCK) --constraints constraints.txt $(IMAGE_EXTRAS:%=--extra %) pyproject.toml -
CPU_TORCH = $(if $(WHEELS),--find-links $(WHEELS),--torch-backend cpu)
locks: $(VENV)-tools/.installed ## Resolve the images' packages again, with their hashes
	echo 'torch==$(TORCH_VERSION)' | $(OF_JOB) --extra gpu --output-file docker/requirements-cuda.lock
	echo 'torch==$(TORCH_VERSION)+cpu' | $(OF_JOB) $(CPU_TORCH) --output-file docker/requirements-cpu.lock
	$(LOCK) constraints-s3.txt --output-file docker/s3/requirements.lock

audit: $(VENV)-audit/.installed build/sbom-cpu.json build/sbom-cuda.json ## The images' packages as SBOMs in build/, and which are known to be vulnerable
	-$(VENV)-audit/bin/pip-audit $(AUDIT) --requirement docker/requirements-cuda.lock
	@echo 'What was found does not block; what could not be audited, nobody has looked up.'

AUDIT = --no-deps --disable-pip --progress-spinner off
build/sbom-%.json: docker/requirements-%.lock $(VENV)-audit/.installed
	@mkdir -p $(@D)
	PYTHONWARNINGS=ignore $(VENV)-audit/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file $@ $<

##@ Cleaning
.PHONY: clean
clean: ## Remove what was installed and cached here; runs stay
	rm -rf $(VENV) $(VENV)-s3 $(VENV)-tensorflow $(VENV)-tools $(VENV)-audit .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info build

# What the targets above stand on. Without an NVIDIA driver torch's small CPU build is taken where the index has one.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and none was found (or say make PYTHON=/path/to/python)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python lacks its venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "installing into $(VENV) ..."
	@command -v nvidia-smi >/dev/null || $(PIP) install -q -c constraints.txt "torch==$(TORCH_VERSION)+cpu" 2>/dev/null || true
	@$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.parity: $(VENV)/.dev
	@$(PIP) install -q -c constraints.txt -e '.[dev,parity]'
	@touch $@

$(VENV)/.peers: $(VENV)/.dev tests/benchmarks/peers.txt
	@$(PIP) install -q -c constraints.txt -e '.[dev,bench]'
	@$(PIP) install -q --no-deps -r tests/benchmarks/peers.txt
	@touch $@

$(VENV)/.k8s: $(VENV)/.dev
	@$(PIP) install -q -c constraints.txt -e '.[dev,k8s]'
	@touch $@

# Models of prometheus-operator's resources, from npm; without node the tests that need them are skipped.
build/k8s-models/.installed: tests/k8s/package.json
	@mkdir -p $(@D) && cp $< $(@D)/
	@npm install --silent --no-audit --no-fund --prefix $(@D) && touch $@ \
		|| echo "npm could not install prometheus-operator's models: the tests that need them will be skipped"

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

# The linters, and uv, which makes the image's locks.
$(VENV)-tools/.installed: $(VENV)/bin/python constraints-tools.txt
	@$(PYTHON) -m venv $(VENV)-tools && $(VENV)-tools/bin/python -m pip install -q -r constraints-tools.txt && touch $@

$(VENV)-audit/.installed: $(VENV)/bin/python constraints-audit.txt
	@$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/python -m pip install -q -r constraints-audit.txt && touch $@
