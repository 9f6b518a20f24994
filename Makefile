# Everything happens in .venv; `make demo` and `make test` set it up by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH := $(shell grep '^torch==' constraints.txt)
CRYPTEN := $(shell grep '^crypten==' constraints.txt)
MPICH := build/mpich
MPICH_TESTS := tests/launch/test_mpich.py "tests/contract/test_transport.py::test_mpi_keeps_the_contract[3-True]"
FLOWER := $(shell grep '^flwr==' constraints.txt)
# Ranks and tests run side by side; one thread each is fastest.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage erase-coverage run-tests test-mpich chaos check docs figures format bench-smoke clean

help: ## say what each target does
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv with every extra and all tools; nothing to do if nothing changed

$(STAMP): pyproject.toml constraints.txt Makefile mpcfl/hazmat/dot.c mpcfl/hazmat/ifma.c
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mpcfl needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	@# torch first, and pinned: other packages would pull its newest GPU build.
	$(PIP) install -c constraints.txt $(TORCH) setuptools
	$(PIP) install -c constraints.txt -e '.[all,flower,peers,dev,docs]'
	@# CrypTen's metadata names packages that don't install, Flower's pins versions that don't go with
	@# ours; the real needs of both came with the line above.
	$(PIP) install --no-deps $(CRYPTEN) $(FLOWER)
	@touch $(STAMP)

demo: setup ## train on real data at four parties; the budget every round, the accuracy at the end
	$(BIN)/mpcfl run digits --backend crypten

test: PYTEST := $(BIN)/python -m pytest
test: run-tests ## run all tests

coverage: PYTEST := $(BIN)/coverage run -m pytest
coverage: erase-coverage run-tests ## the same, measuring branch coverage: twice as long
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

erase-coverage: setup
	$(BIN)/coverage erase

run-tests: setup
	@mkdir -p build
	@# Tests that start MPI jobs wait a lot: two files at a time, beside all others, which only take
	@# what is left.
	@nice -n 5 $(PYTEST) -m "not mpi" > build/tests.log 2>&1 & others=$$!; \
	$(PYTEST) -m mpi -n 2 --dist loadfile; with_mpi=$$?; \
	wait $$others; without=$$?; \
	cat build/tests.log; \
	test $$with_mpi -eq 0 -a $$without -eq 0

test-mpich: $(MPICH)/.setup-done ## run some tests under MPICH; all with MPI: make test-mpich MPICH_TESTS="-m mpi"
	@# Unbuffered, Python writes a line in pieces, which MPICH's mpirun mixes with those of other ranks.
	env -u PYTHONUNBUFFERED $(MPICH)/bin/python -m pytest $(MPICH_TESTS)

$(MPICH)/.setup-done: $(STAMP)
	$(BIN)/python -m venv $(MPICH)
	$(MPICH)/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -c constraints.txt mpich mpi4py
	@# All else is that of .venv; what is installed here comes first.
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(MPICH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/setup.pth"
	@touch $@

chaos: setup ## kill every party at every point under every backend, and at random times: an hour
	@# In pieces: make chaos CHAOS="--only ring", then CHAOS=--resume.
	$(BIN)/python tests/mpi/chaos.py $(CHAOS)

check: setup ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# The top-level folders parties/ and launch/ are packages of mpcfl only once installed.
	rm -rf build/typed
	$(PIP) install --no-deps --no-build-isolation --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy -p mpcfl
	MYPYPATH=build/typed $(BIN)/mypy benchmarks
	MYPYPATH=build/typed:docs/scripts $(BIN)/mypy docs/scripts

docs: setup ## build the documentation into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

figures: setup ## draw the figures of the documentation anew, from benchmarks/results
	$(BIN)/python docs/scripts/figures.py

format: setup ## rewrite the code in the house format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench-smoke: setup ## compare all backends on a small grid
	$(BIN)/mpcfl bench --smoke

clean: ## remove .venv and everything that was built
	rm -rf $(VENV) build dist htmlcov *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis
