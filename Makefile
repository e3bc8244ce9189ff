# make run on a fresh machine with Python 3.11; everything else hangs on the same two stamps.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Installed first and alone, so that nothing else chooses a build. For another one: make setup TORCH="torch==2.13.0+cu130"
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run setup test demo bench lint

run: setup
	$(BIN)/python manage.py serve

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install "$(TORCH)"
	$(BIN)/pip install -r requirements.txt
	touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed requirements-test.txt
	$(BIN)/pip install -r requirements-test.txt
	touch $@

# The code that wrote the published checkpoints: beside the environment, only for the parity tests, which are skipped without it.
$(VENV)/originals/.installed: tests/originals/packages.txt $(VENV)/.installed
	$(BIN)/pip install --no-deps --upgrade --target $(VENV)/originals -r $< && touch $@ || echo "SKIPPED: parity with the original code"

test: $(VENV)/.installed-for-tests $(VENV)/originals/.installed
	sh .ci/system-packages
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)
	if command -v node >/dev/null; then npm test --silent; else echo "SKIPPED: node is missing, the JavaScript tests were not run"; fi

demo: setup
	$(BIN)/python manage.py migrate --verbosity 0
	$(BIN)/python manage.py demo

bench: $(VENV)/.installed-for-tests
	$(BIN)/python -m benchmarks

lint: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python manage.py makemigrations --check --dry-run
