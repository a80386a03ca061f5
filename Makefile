# make demo: set up and run the main job on made-up images.   make test: the tests a developer runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= out/demo
WORKERS ?= 2

.PHONY: setup demo federation test test-all soak check format lock

setup: $(VENV)/installed

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fedward needs Python 3.11 or newer; name one with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@rm -rf $(OUT)
	$(BIN)/python -m simulations run demo --data phantom:320 --sites 4 --partition quantity:1+dirichlet:1 --compare --out $(OUT)

# A real server and four hospitals as processes on loopback: TLS, enrolment, privacy, encrypted updates.
federation: setup
	@rm -rf out/federation
	$(BIN)/python -m simulations federation --out out/federation

test: setup
	$(BIN)/python -m pytest

test-all: setup
	$(BIN)/python -m pytest -m "not gpu and not soak" -n $(WORKERS) --dist loadfile

# Killed servers and sites, cut and slow lines, many rounds: real processes, half an hour and more, alone on the machine.
soak: setup
	$(BIN)/python -m pytest -m soak

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Pins every dependency with its hashes, for Linux and Python 3.11 and up.
lock:
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-header --quiet --output-file requirements.lock
