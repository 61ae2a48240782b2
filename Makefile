# Everything is set up by the targets themselves, on a fresh Debian or Ubuntu, as root.
.PHONY: demo test soak bench lint clean help
PYTHON ?= python3
export PYTHON

help:
	@echo "make demo   a real guest outlives its uplink, in private network namespaces (about two minutes)"
	@echo "make test   all tests: real kernel, real QEMU guests"
	@echo "make soak   the long ones: random operations, kills at every step, fuzzing (about half an hour)"
	@echo "make bench  figures against floor and peers, with a report in bench/out (about ten minutes)"
	@echo "make lint   ruff, mypy --strict, import arrows"

demo: .venv/.runtime
	@.venv/bin/evertap demo $(DEMO)

test: .venv/.dev
	@.venv/bin/python -m pytest $(TESTS)

soak: .venv/.dev
	@.venv/bin/python -m pytest -m soak $(TESTS)

bench: .venv/.bench
	@.venv/bin/python -m bench $(BENCH)

lint: .venv/.dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

.venv/.runtime: pyproject.toml constraints.txt tools/setup
	@tools/setup runtime

.venv/.dev: pyproject.toml constraints.txt tools/setup
	@tools/setup dev

.venv/.bench: pyproject.toml constraints.txt tools/setup
	@tools/setup bench

clean:
	rm -rf .venv .cache
