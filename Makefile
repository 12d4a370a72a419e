# `make quickstart` and `make test` work on a fresh clone: each builds .venv first when it is missing or out of date.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help env minkowski quickstart small-clip test unit soak budget lint clean distclean

VENV := .venv
BIN := $(VENV)/bin
# Each candidate is asked to run: a pyenv shim exists also for versions that are not selected.
find_python = $(shell $(1) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14); print("$(1)")' 2>/dev/null)
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(call find_python,$(name))))
# Spinning threads of several processes on few cores cost more than they save (20 s against 2.7 s once measured).
export OMP_WAIT_POLICY ?= PASSIVE
DATA ?=
PYTEST_ARGS ?=
FILES ?= $(shell find tests -name 'test_*.py' | sort)
ROUNDS ?= 10
# `no`: `make env` leaves it to a later `make minkowski`.
MINKOWSKI ?=
PIP := $(BIN)/python -m pip -q --disable-pip-version-check
EVERYTHING := -c constraints.txt -e '.[test,dev]' setuptools wheel ninja
S3_SERVER := --require-hashes --no-deps -r tests/requirements-s3.txt

help:
	@echo "make env                build .venv with everything (about three minutes on two cores, half of them MinkowskiEngine)"
	echo "make quickstart         the whole road on procedural rooms, and a report; DATA=FOLDER or DATA=s3://BUCKET/PREFIX: on yours"
	echo "make small-clip         make the CLIP that is shipped for procedural rooms again (configs/clip/small-rooms.*)"
	echo "make test | unit        all tests | the quick ones (options in PYTEST_ARGS are passed on)"
	echo "make soak               kills, faults and long trainings, again and again (ROUNDS=10)"
	echo "make budget             write the CPU seconds of test files into tests/budget.toml (FILES=\"...\": of these)"
	echo "make lint               ruff check, ruff format --check, mypy, and that the pins exist for Python 3.12 and 3.13"
	echo "make minkowski          try again to build MinkowskiEngine (optional sparse backend)"
	echo "make clean | distclean  remove caches and runs/quickstart | remove .venv too"

env: $(VENV)/ready
	@:

# ---- the environment ------------------------------------------------------------------------------------------------

define no_python
No Python 3.11, 3.12 or 3.13 found (looked for python3.11, python3.12, python3.13, python3 on PATH).
Install one (Debian: sudo apt-get install python3 python3-venv python3-dev), or name it: make env PYTHON=/path/to/python3.11
endef
define no_venv
$(PYTHON) cannot make a virtual environment. Run: sudo apt-get install python3-venv && make env
endef
define no_minkowski_libraries
MinkowskiEngine is left out: it needs g++, OpenBLAS and the Python headers. Everything else works. To add it, run:
  sudo apt-get install g++ libopenblas-dev python3-dev && make minkowski
endef
define no_minkowski_python
MinkowskiEngine is left out: its setup.py needs numpy.distutils, which is gone from Python 3.12. Everything else works.
To have it, build the environment with Python 3.11: make distclean && make env PYTHON=python3.11
endef
define no_minkowski_build
MinkowskiEngine is left out: it did not build (see above). Everything else works. To try again: make minkowski
endef
export no_python no_venv no_minkowski_libraries no_minkowski_python no_minkowski_build

# apt-get when we may use it: as root on Debian. Elsewhere it fails quietly and the caller says what to install.
apt_install = [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && echo "apt-get install $(1)" \
	&& flock Makefile sh -c 'apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(1) >/dev/null'

# uv does not read pip's settings: the index that somebody chose there is meant for it too.
define use_index_of_pip
index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}}
[ -z "$$index" ] || export UV_DEFAULT_INDEX="$$index"
endef

$(VENV)/ready: pyproject.toml constraints.txt tests/requirements-s3.txt
	@[ -n "$(PYTHON)" ] || { echo "$$no_python" >&2; exit 1; }
	make_venv() { $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) >/dev/null; }
	make_venv || { $(call apt_install,python3-venv) && make_venv; } || { echo "$$no_venv" >&2; exit 1; }
	echo "Installing the pinned packages into $(VENV) (6 GB, about a minute) ..."
	$(use_index_of_pip)
	# One resolve of everything: a second call may replace torch by another build of it. Byte code is compiled here: under
	# PYTHONDONTWRITEBYTECODE every process would do it anew for the 4,500 files it imports.
	with_uv() {
		$(PIP) install -c constraints.txt uv && $(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode $(EVERYTHING) \
			&& $(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode $(S3_SERVER)
	}
	with_uv || { echo "uv could not install them (see above); pip does the same in about five minutes ..."
		$(PIP) install $(EVERYTHING); $(PIP) install $(S3_SERVER); }
	$(if $(filter no,$(MINKOWSKI)),,$(MAKE) --no-print-directory minkowski)
	touch $@

# Optional: whatever goes wrong here is said in one message and the rest of the environment stands.
minkowski:
	@if $(BIN)/python tools/build_minkowski.py --imports; then exit 0; fi
	if $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))'; then echo "$$no_minkowski_python" >&2; exit 0; fi
	headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
	can_compile() { printf '#include <Python.h>\n#include <cblas.h>\nint main() { return 0; }\n' \
		| g++ -x c++ -I"$$headers" - -lopenblas -o /dev/null 2>/dev/null; }
	can_compile || { $(call apt_install,libopenblas-dev python3-dev) && can_compile; } \
		|| { echo "$$no_minkowski_libraries" >&2; exit 0; }
	$(BIN)/python tools/build_minkowski.py || echo "$$no_minkowski_build" >&2

# ---- what people run ------------------------------------------------------------------------------------------------

quickstart: env
	@$(BIN)/t4p quickstart $(if $(DATA),--data '$(DATA)')

small-clip: env
	@$(BIN)/python -m recipes.small_clip.train

# First what may run beside others, two files at once and the longest first (tests/budget.py); then what needs the
# machine for itself. Status 5 of pytest: PYTEST_ARGS left no test in this half.
test: env
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not alone' $(PYTEST_ARGS) \
		|| [ $$? = 5 ]
	$(BIN)/python -m pytest -m alone $(PYTEST_ARGS) || [ $$? = 5 ]

unit: env
	@$(BIN)/python -m pytest tests/unit -m 'not slow' $(PYTEST_ARGS)

# What `make test` proves once, again and again: processes killed, nodes lost, long trainings.
soak: env
	@for round in $$(seq $(ROUNDS)); do
		echo "soak: round $$round of $(ROUNDS)"
		$(BIN)/python -m pytest -m 'soak or kill' $(PYTEST_ARGS)
	done

# Each file in a process of its own, as it is when somebody runs only that.
budget: env
	@for file in $(FILES); do
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --write-budget $$file || [ $$? = 5 ]
	done

lint: env
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	# The same pins for the other Pythons: each package has a wheel there (DeepSpeed ships none), and they fit together.
	$(use_index_of_pip)
	for version in 3.12 3.13; do
		if said=$$($(BIN)/uv pip compile -q pyproject.toml --extra test --extra dev -c constraints.txt -o /dev/null \
			--python-version $$version --python-platform x86_64-manylinux_2_28 --only-binary :all: --no-binary deepspeed 2>&1)
		then echo "Python $$version: the pins resolve to wheels"
		elif grep -q "No solution found" <<<"$$said"; then echo "Python $$version: $$said" >&2; exit 1
		else echo "Python $$version: not looked at, no package index answers: $${said##*$$'\n'}"; fi
	done

clean:
	rm -rf build runs/quickstart .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) *.egg-info
