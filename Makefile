# make demo    scan the interpreter's standard library through Ray actors
# make lint    style and types
# make test    the same, and tests
# make slow    the tests that take longer, and all properties with ten times the examples, new ones each time
# make nvme    NVMe passthrough on emulated drives, in a QEMU guest (Debian, root; skipped with the reason elsewhere)
# Both set up .venv by themselves; they need python3 (3.11 or later) with pip, and make.

PYTHON ?= python3
BIN := .venv/bin
PATTERNS := -e 'AKIA[0-9A-Z]{16}' -e 'gh[pousr]_[A-Za-z0-9]{36}' -e 'https?://bugs\.python\.org/issue[0-9]{5}' -F 'BEGIN RSA PRIVATE KEY'

# Hundreds of processes start: modules are compiled for the first of them, whatever this shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo lint loops test nvme slow bench clean

.venv/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "uring_actors needs Python 3.11 or later: make PYTHON=…")'
	$(PYTHON) -m venv .venv || { $(PYTHON) -m pip install --quiet virtualenv && $(PYTHON) -m virtualenv --quiet .venv; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: .venv/.ready
	$(BIN)/uring-actors scan $(PATTERNS) "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

loops: .venv/.ready
	$(BIN)/python -m tests.loops

test: .venv/.ready
	$(MAKE) -j 2 lint loops
	# All processes must give the tests the same names, whatever their parameters are. The one with Ray mostly waits.
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -m 'not slow and not gpu' -n 3 --no-loadscope-reorder

nvme: .venv/.ready
	PYTHON=$(BIN)/python tests/nvme_qemu/prepare
	$(BIN)/python -m pytest tests/test_nvme_emulated.py

slow: .venv/.ready
	THOROUGH=1 $(BIN)/python -m pytest -m '(slow or hypothesis) and not gpu'

bench: .venv/.ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv
