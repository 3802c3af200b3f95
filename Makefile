# make demo | make test | make serve; `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
BUNDLE ?= demo/bundle
DATA ?=
INSTALLED := .venv/.installed
SBOM ?= build/sbom
RELEASE ?=

.PHONY: help setup demo serve test check lint format types contracts readability protocol docker-lint deploy-check version lock ci-lint sbom audit images release benchmark-tables benchmark-check pytest fuzz clean

help:  ## this list
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z%-]+):[^#]*## */  make \1\t/' | expand -t 22

setup: $(INSTALLED)  ## install into .venv, nothing elsewhere: the packages of requirements/setup.txt, and a Triton server

$(INSTALLED): pyproject.toml requirements/setup.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; give one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv \
	  || { echo "Python's venv is missing; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }
	@echo "Installing into .venv (6 GB with PyTorch; minutes) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/setup.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/listing-vision triton install --if-supported
	@touch $@

demo: setup  ## the whole path once: photos, fine-tune, evaluate, export, Triton, gRPC (DATA=folder for real photos)
	@$(BIN)/listing-vision demo $(if $(DATA),--data "$(DATA)")

serve: setup  ## serve BUNDLE (default: the demo's) on 127.0.0.1:50051 until Ctrl-C
	@$(BIN)/listing-vision serve $(BUNDLE)

test: setup check pytest  ## everything that CI checks

check: lint types contracts readability protocol docker-lint deploy-check ci-lint version benchmark-check  ## everything but the tests

lint:
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && echo "lint: ok"

format:  ## format the code with ruff
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

types:
	@$(BIN)/mypy

contracts:
	@$(BIN)/lint-imports --no-cache > .contracts.log || { cat .contracts.log; exit 1; }
	@grep "^Contracts:" .contracts.log; rm -f .contracts.log

readability:  ## sizes, mirrored tests, public names, plain words
	@$(BIN)/python scripts/check_readability.py

protocol:
	@$(BIN)/python scripts/generate_protocol.py --check

docker-lint:
	@$(BIN)/hadolint Dockerfile.gpu && echo "Dockerfile.gpu: ok"

deploy-check:  ## validate manifests, Compose, Bake and scripts
	@$(BIN)/python scripts/check_deploy.py

ci-lint:  ## validate .github/workflows: schema, permissions, pinned actions
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/zizmor --offline --quiet --pedantic --no-progress .github/workflows && echo ".github/workflows: ok"

lock: setup  ## write requirements/*.txt again: exact versions with hashes (UPGRADE=1: the newest)
	@$(BIN)/python scripts/lock.py $(if $(UPGRADE),--upgrade)

sbom: setup $(patsubst requirements/%.txt,$(SBOM)/%.cdx.json,$(wildcard requirements/*.txt))  ## CycloneDX bills of materials of each requirements file and of .venv, in build/sbom
	@$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml -o $(SBOM)/environment.cdx.json $(BIN)/python

$(SBOM)/%.cdx.json: requirements/%.txt
	@mkdir -p $(@D)
	@$(BIN)/python -W ignore::UserWarning -m cyclonedx_py requirements --output-reproducible --pyproject pyproject.toml -o $@ $<

audit: setup  ## look every locked package up among known vulnerabilities; needs pypi.org
	@for file in requirements/*.txt; do \
	  echo "$$file"; $(BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r $$file || exit 1; done

images:  ## build the images (RELEASE=1: push them, from base images by digest only)
	@$(if $(RELEASE),$(BIN)/python scripts/check_base_images.py &&) docker buildx bake $(if $(RELEASE),--push)

release: setup  ## build wheel and sdist into dist/, install each extra in a clean environment, write the provenance
	@$(BIN)/python scripts/release.py

version:
	@$(BIN)/python scripts/check_version.py

benchmark-tables:  ## write docs/benchmarks.md and README's comparison from benchmarks/results
	@$(BIN)/python scripts/benchmark_tables.py

benchmark-check:
	@$(BIN)/python scripts/benchmark_tables.py --check

pytest:
	@$(BIN)/python -m pytest -n 2 --dist loadfile

fuzz: setup  ## search for photos that break the decoder, for half an hour
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
	@$(BIN)/python -m fuzz.decode_photo

bench-%: setup  ## run benchmarks/NAME.py and write benchmarks/results/NAME.json
	@$(BIN)/python -m benchmarks.$*

clean:  ## remove everything that was installed and generated
	rm -rf .venv build demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
