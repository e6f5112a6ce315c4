# Everything runs in .venv, which is made once and again when pyproject.toml, constraints.txt or
# this file changes. Needed: make, a network, Python 3.11 or newer (another one: make PYTHON=...).

PYTHON =
VENV = .venv
RUN = $(VENV)/bin/python -m
INSTALLED = $(VENV)/.installed

.PHONY: help demo test lint types format bench fuzz docs screenshots tiny-checkpoint clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(INSTALLED)  ## install, then run the main job from the bundled checkpoint to a report
	$(VENV)/bin/tidesim demo

test: lint types  ## install, then run every check: linter, types, tests
	$(RUN) pytest

lint: $(INSTALLED)  ## ruff: rules and format
	$(RUN) ruff check
	$(RUN) ruff format --check

types: $(INSTALLED)  ## mypy, strict
	$(RUN) mypy

format: $(INSTALLED)  ## apply ruff's fixes and format
	$(RUN) ruff check --fix
	$(RUN) ruff format

docs: $(INSTALLED)  ## docs/commands.md from the commands, the schema of their JSON from docs/json.md
	$(VENV)/bin/python docs/commands.py > docs/commands.md
	$(VENV)/bin/python docs/schemas.py > docs/json.schema.json

screenshots: $(INSTALLED)  ## docs/images from the commands, in ten minutes; needs Chromium
	PYTHONPATH=tests $(VENV)/bin/python docs/screenshots.py

bench: $(INSTALLED)  ## the benchmarks of tests/bench
	$(RUN) pytest tests/bench -o python_files='bench_*.py'

fuzz: $(INSTALLED)  ## every parser against 11,000 damaged files
	$(RUN) pytest tests/test_fuzz.py --hypothesis-profile fuzz

tiny-checkpoint: $(INSTALLED)  ## train the bundled checkpoint; goes on where it was stopped
	$(RUN) tidesim.runtime.training.train

clean:  ## remove caches and build products; .venv and training stay
	rm -rf build dist demo-out .hypothesis .mypy_cache .pytest_cache .ruff_cache .coverage
	find tidesim solver tests -name __pycache__ -prune -exec rm -rf {} +

# With the first interpreter that is new enough and can make an environment; pip comes first
# because the one that Python 3.11 brings does not know --group.
$(INSTALLED): pyproject.toml constraints.txt Makefile
	@found=; for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	    2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "tidesim needs Python 3.11 or newer with its venv module (Debian: python3-venv);" \
	    "install it or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "$$found -m venv $(VENV)"; "$$found" -m venv $(VENV)
	$(RUN) pip install --quiet --constraint constraints.txt --upgrade pip
	$(RUN) pip install --constraint constraints.txt --editable . --group dev
	@touch $@
