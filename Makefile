# make quickstart   the main job, end to end, on this machine
# make test         every test; test-here only those without a Ray cluster, test-ray only those with
# make check        style and types only
.PHONY: quickstart test test-here test-ray test-here-then-late test-early check bench clean help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# BESIDE="-n 2 --dist loadfile" shares those without a cluster among two processes, file by file.
BESIDE ?=
# Libraries that would otherwise open thread pools, phone home or fetch from a hub.
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
test-here test-ray test-here-then-late test-early: export OMP_NUM_THREADS := 1

help:
	@sed -n 's/^# //p' Makefile | head -3

# torch first and pinned: a bare "torch" pulled in by another package takes gigabytes of CUDA libraries.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[offline,captions,detectors,dev]'
	touch $@

quickstart: $(VENV)/installed
	@$(BIN)/t2i quickstart

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Tests on a real Ray cluster mostly wait, for processes that start and for machines that are given up: the others run
# meanwhile, and after these the clusters that take minutes, so that neither of the two rows is much the longer.
HERE = $(BIN)/python -m pytest -m "not ray_cluster" $(BESIDE)
test: check
	@$(MAKE) --no-print-directory -j2 --keep-going --output-sync=target test-here-then-late test-early

test-here: $(VENV)/installed
	$(HERE)

test-ray: $(VENV)/installed
	$(BIN)/python -m pytest -m ray_cluster

test-here-then-late: $(VENV)/installed
	@failed=0; \
	$(HERE) || failed=1; \
	$(BIN)/python -m pytest -m "ray_cluster and late" || failed=1; \
	exit $$failed

test-early: $(VENV)/installed
	$(BIN)/python -m pytest -m "ray_cluster and not late"

bench: $(VENV)/installed
	@for b in benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

clean:
	rm -rf $(VENV) t2i-home build *.egg-info
