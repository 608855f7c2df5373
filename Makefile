# make demo    run the workflow on small simulated data (CPU only); prints the path of the report
# make test    run the tests            make lint    run ruff, snakefmt, mypy and snakemake --lint
# make docs    build the documentation site in site/
# make clean   remove .venv and caches  make lock    resolve the dependencies again
#
# Everything runs in .venv. On Python 3.11 it is installed from envs/requirements.lock; other versions install the
# newest allowed packages, because the lock is for 3.11. It is rebuilt when the lock or the Python version changes.
# Settings: PYTHON (3.11 or newer), CORES (all), PYTEST_ARGS, for example
#   make test PYTEST_ARGS="-m 'not slow'"        make PYTHON=python3.12 test

PYTHON ?= python3
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST_ARGS ?=

DEMO := --configfile config/demo.yaml
REPORT := results/demo/report.html
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
VENV := .venv/installed-$(VERSION)
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input

# The recipes call `python`, `snakemake` and the linters of the venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_ROOT_USER_ACTION := ignore

.PHONY: venv demo test lint docs clean lock
.DELETE_ON_ERROR:

# `--` ends the list of configuration files, which would otherwise include the targets.
demo: $(VENV)
	snakemake --cores $(CORES) $(DEMO) -- all report
	@test -s $(REPORT)
	@echo "Report: $(CURDIR)/$(REPORT)"

test: $(VENV)
	python -m pytest --numprocesses $(CORES) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile rules workflow/Snakefile
	mypy
	snakemake $(DEMO) --lint

# A small venv of its own: the site is built from source files, without torch. The variable turns off an advertisement.
docs: .docs-venv/installed
	NO_MKDOCS_2_WARNING=1 .docs-venv/bin/mkdocs build --quiet
	@echo "Site: $(CURDIR)/site/index.html"

.docs-venv/installed: docs/requirements.txt
	rm -rf .docs-venv
	$(PYTHON) -m venv .docs-venv
	.docs-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --requirement docs/requirements.txt
	@touch $@

clean:
	rm -rf .venv .docs-venv site .pytest_cache .ruff_cache .mypy_cache src/samsvae.egg-info
	find . -path ./results -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

venv: $(VENV)

$(VENV): envs/requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "samsvae needs Python 3.11 or newer: make PYTHON=/path/to/python")'
	@echo "Installing .venv for Python $(VERSION), which takes a few minutes"
	rm -rf .venv
	$(PYTHON) -m venv .venv
ifeq ($(VERSION),3.11)
	$(PIP) -r envs/requirements.lock
	$(PIP) --no-deps --no-build-isolation --editable .
else
	$(PIP) --editable '.[study,dev]'
endif
	@touch $@

# torch is pinned here, because everything else depends on its version. The suffix of the CPU build ("+cpu") is removed,
# so that the lock fits every build. The CUDA build itself pins the extra packages that it needs (nvidia-*, triton).
TORCH := 2.13.0
lock:
	rm -rf .lock-venv
	$(PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input setuptools torch==$(TORCH) \
	  --editable '.[study,dev]'
	{ echo "# Exact version of every package, for Python 3.11. Written by 'make lock'; do not edit."; \
	  .lock-venv/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | grep -v -e '^nvidia-' -e '^cuda-' -e '^triton=' | sed -E 's/^(torch==[^+]*)\+.*/\1/'; } > envs/requirements.lock
	rm -rf .lock-venv
