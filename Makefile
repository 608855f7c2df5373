# make demo    the whole workflow on a simulated miniature, CPU only; ends with the path of the report
# make test    the tests            make lint    ruff, snakefmt, snakemake --lint
# make clean   drop .venv, caches    make lock    resolve the dependencies anew
#
# Everything runs in .venv, made from envs/requirements.lock and made anew when the lock changes.
# Settings: PYTHON (3.11 or newer), CORES (all), PYTEST_ARGS, e.g. make test PYTEST_ARGS="-m 'not slow'"

PYTHON ?= python3
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST_ARGS ?=

DEMO := --configfile config/demo.yaml
REPORT := results/demo/report.html
VENV := .venv/made
PIP_QUIET := --quiet --disable-pip-version-check --no-input

# The recipes say `python` and `snakemake`: both are the venv's.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_ROOT_USER_ACTION := ignore

.PHONY: demo test lint clean lock
.DELETE_ON_ERROR:

# `--` ends the list of config files, which would swallow the targets.
demo: $(VENV)
	snakemake --cores $(CORES) $(DEMO) -- all report
	@test -s $(REPORT)
	@echo "The report: $(CURDIR)/$(REPORT)"

test: $(VENV)
	python -m pytest $(PYTEST_ARGS)

lint: $(VENV)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules
	snakemake $(DEMO) --lint

clean:
	rm -rf .venv .pytest_cache .ruff_cache src/samsvae.egg-info
	find . -path ./results -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV): envs/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "samsvae needs Python 3.11 or newer: make PYTHON=/path/to/python")'
	@echo "Making .venv from $<: some minutes, once"
	rm -rf .venv
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install $(PIP_QUIET) -r $<
	.venv/bin/python -m pip install $(PIP_QUIET) --no-deps --no-build-isolation --editable .
	@touch $@

# torch is pinned here, since everything else follows it. The CPU build's name ("+cpu") is cut off, so that
# the lock fits every build; what the CUDA build needs on top (nvidia-*, triton) torch itself pins exactly.
TORCH := 2.13.0
lock:
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install $(PIP_QUIET) setuptools torch==$(TORCH) --editable '.[study,dev]'
	{ echo "# Every package at its exact version, Python 3.11. Made by 'make lock'; do not edit."; \
	  .lock-venv/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | grep -v -e '^nvidia-' -e '^cuda-' -e '^triton=' | sed -E 's/^(torch==[^+]*)\+.*/\1/'; } > envs/requirements.lock
	rm -rf .lock-venv
