# The two commands: `make demo` and `make test`. Both set up everything they need below .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
PY := .venv/bin/python
LOCK := requirements/dev.txt
export DVC_NO_ANALYTICS := 1
# Some containers forbid bytecode; then every step compiles all its imports again.
unexport PYTHONDONTWRITEBYTECODE
ifneq ($(wildcard ../shared/data),)
export CSFLOW_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help setup demo serve images docs test test-rest test-chaos fuzz test-all lint lock schema golden manifests clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.ready ## Make .venv from the lock, nothing else

.venv/.ready: $(LOCK) pyproject.toml
	@$(PYTHON) --version >/dev/null 2>&1 || { echo "Python 3.11 to 3.13 is needed, for instance: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x .venv/bin/uv || { $(PYTHON) -m venv .venv && $(PY) -m pip install --quiet uv; }
	.venv/bin/uv pip sync --quiet --python $(PY) $(LOCK)
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps --editable .
	@touch $@

demo: setup ## Train, register, promote and serve the demo line (FORCE=1: again, with another seed)
	.venv/bin/csflow demo $(if $(FORCE),--force)

serve: setup ## Serve the demo line's champion on http://127.0.0.1:8080 (LINE=name for another)
	.venv/bin/csflow serve $(or $(LINE),demo-texture) --port $(or $(PORT),8080)

images: ## Build csflow-train and csflow-serve (BASE_IMAGE=, INDEX_URL=, CA_BUNDLE= for an air-gapped factory)
	BASE_IMAGE="$(BASE_IMAGE)" INDEX_URL="$(INDEX_URL)" CA_BUNDLE="$(CA_BUNDLE)" $(PYTHON) infra/images/build.py

FAST := not (slow or real or docker or postgres or browser or gpu)

# Two processes test side by side: with more threads than cores each waits for the other.
test test-rest: export OMP_NUM_THREADS ?= 1
test: setup ## The fast suite
	$(PY) -m pytest -m "$(FAST)" -n 2 --dist loadfile

test-rest: setup ## What the fast suite leaves out and this machine can run
	$(PY) -m pytest -m "not gpu and not ($(FAST))" -n 2 --dist loadfile --no-loadscope-reorder

test-chaos: export OMP_NUM_THREADS ?= 1
test-chaos: setup ## Kill a run at 50 moments of its life and damage what it keeps (MOMENTS=n; an hour or two)
	CSFLOW_CHAOS=$(or $(MOMENTS),50) CSFLOW_CHAOS_DAMAGE=1 $(PY) -m pytest -q tests/pipelines/test_chaos.py

fuzz: export OMP_NUM_THREADS ?= 1
fuzz: setup ## Send a server generated requests over all protocols (EXAMPLES=n for each test, or MINUTES=n in all; 10 minutes)
	CSFLOW_FUZZ_EXAMPLES=$(or $(EXAMPLES),0) CSFLOW_FUZZ_MINUTES=$(if $(EXAMPLES),0,$(or $(MINUTES),10)) \
	  $(PY) -m pytest -q --timeout 0 tests/csflow/adapters/serving/test_fuzz.py

test-all: test test-rest ## Everything this machine can run

lint: setup ## Style, types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

docs: setup ## Build the documentation site into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict
	@echo "build/site/index.html"

lock: setup ## Resolve the dependencies again
	for set in dev train serve; do .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --extra $$(test $$set = train && echo all || echo $$set) \
	  --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements/$$set.txt pyproject.toml \
	  $$(test $$set = dev || echo --constraint requirements/dev.txt); done
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
	  --no-emit-find-links --output-file requirements/clients.txt requirements/clients.in

OVERLAYS := $(notdir $(wildcard infra/kubernetes/overlays/*))

schema: setup ## Write the JSON schema of a line's YAML again
	$(PY) -m csflow.config.schema

golden: setup ## Write the golden files of the compiled pipelines again
	CSFLOW_UPDATE_GOLDEN=1 $(PY) -m pytest -q tests/pipelines/test_package.py

manifests: setup ## Render every overlay of infra/kubernetes into build/manifests/ and check that it fits together
	@command -v kubectl >/dev/null || { echo "kubectl is missing: it renders the manifests (kubectl kustomize; no cluster is needed). Install 1.29 or later: https://kubernetes.io/docs/tasks/tools/" >&2; exit 1; }
	@mkdir -p build/manifests
	@set -e; for overlay in $(OVERLAYS); do \
	  kubectl kustomize infra/kubernetes/overlays/$$overlay > build/manifests/$$overlay.yaml.part; \
	  mv build/manifests/$$overlay.yaml.part build/manifests/$$overlay.yaml; echo "build/manifests/$$overlay.yaml"; done
	@PYTHONPATH=infra/kubernetes $(PY) -m checks $(OVERLAYS:%=build/manifests/%.yaml)

clean: ## Remove the environment and everything csflow made
	rm -rf .venv .csflow build *.egg-info
